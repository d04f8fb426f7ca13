"""tools/data.py: the split is the one that datasets makes, what is wrong is one sentence, what leaks is found."""

import hashlib
import json

from lora_recipes import ROOT

import pytest
from datacalls import call, failed, hundred_rows, read, write

SIZES = (1015, 844, 555)


@pytest.fixture
def three(tmp_path):
    """Sources of the sizes of LoRAfrica's, with a column more than is wanted."""
    return [
        write(tmp_path / f"source{n}.jsonl", [f"What is {n} and {row}?" for row in range(size)], topic="x")
        for n, size in enumerate(SIZES)
    ]


@pytest.fixture
def few(tmp_path):
    return hundred_rows(tmp_path)


def test_build_gives_the_split_of_lorafrica_as_datasets_makes_it(tmp_path, three):
    import datasets

    done = call("build", *three, "-o", tmp_path / "made")
    assert done.exit_code == 0, done.output
    together = [{"question": r["question"], "answer": r["answer"]} for path in three for r in read(path)]
    outer = datasets.Dataset.from_list(together).train_test_split(test_size=0.0414, seed=42)
    inner = outer["train"].train_test_split(test_size=0.086, seed=42)
    expected = {"train": inner["train"], "validation": inner["test"], "test": outer["test"]}
    assert [len(part) for part in expected.values()] == [2114, 200, 100]
    for part, rows in expected.items():
        assert read(tmp_path / "made" / f"{part}.jsonl") == rows.to_list()


def test_the_same_seed_gives_the_same_files_and_another_seed_others(tmp_path, three):
    for name, seed in (("one", 42), ("two", 42), ("three", 43)):
        assert call("build", *three, "-o", tmp_path / name, "--seed", seed).exit_code == 0
    one, two, other = (
        {path.name: path.read_bytes() for path in (tmp_path / n).iterdir()} for n in ("one", "two", "three")
    )
    assert one == two
    assert one["test.jsonl"] != other["test.jsonl"]


def test_the_record_says_what_was_done(tmp_path, three):
    call("build", *three, "-o", tmp_path / "made", "--seed", "7")
    record = json.loads((tmp_path / "made" / "build.json").read_text())
    assert record["sources"] == [{"name": str(p), "rows": n} for p, n in zip(three, SIZES, strict=True)]
    assert (record["seed"], record["removed"], record["empty"]) == (7, 0, 0)
    assert record["fractions"] == {"test": 0.0414, "validation of the rest": 0.086}
    assert {name: entry["rows"] for name, entry in record["files"].items()} == {
        "train.jsonl": 2114,
        "validation.jsonl": 200,
        "test.jsonl": 100,
    }
    for name, entry in record["files"].items():
        assert entry["sha256"] == hashlib.sha256((tmp_path / "made" / name).read_bytes()).hexdigest()


def test_a_built_folder_is_a_source_with_its_three_splits(tmp_path, few):
    call("build", few, "-o", tmp_path / "made", "--test", "0.2", "--validation", "0.25")
    found = json.loads(call("stats", tmp_path / "made", "--json").stdout)
    assert {split: figures["rows"] for split, figures in found.items()} == {"train": 60, "validation": 20, "test": 20}


def test_repeated_questions_are_counted_and_removed_before_the_split_only_when_asked(tmp_path, few):
    options = ("--test", "0.2", "--validation", "0.2")
    done = call("build", few, "-o", tmp_path / "all", *options)
    kept = json.loads((tmp_path / "all" / "build.json").read_text())
    rows = {part: read(tmp_path / "all" / f"{part}.jsonl") for part in ("train", "validation", "test")}
    numbers = [{row["question"].strip("?").split()[-1] for row in part} for part in rows.values()]
    across = len(numbers[0] & numbers[1] | numbers[0] & numbers[2] | numbers[1] & numbers[2])
    assert kept["repeated"]["across splits"] == across > 0
    assert (kept["repeated"]["questions"], kept["repeated"]["rows"], kept["removed"]) == (10, 10, 0)
    assert f"10 rows repeat an earlier row's question; {across} question" in done.stderr
    assert "--dedupe" in done.stderr and "repeated: Who ruled 0?" in done.stderr
    assert len(rows["train"]) + len(rows["validation"]) + len(rows["test"]) == 100

    done = call("build", few, "-o", tmp_path / "once", *options, "--dedupe")
    record = json.loads((tmp_path / "once" / "build.json").read_text())
    assert (record["removed"], record["repeated"]["rows"], record["repeated"]["across splits"]) == (10, 10, 0)
    assert "10 rows repeat an earlier row's question; removed" in done.stderr
    left = [row["question"] for part in rows for row in read(tmp_path / "once" / f"{part}.jsonl")]
    assert sorted(left) == sorted(f"Who ruled {row}?" for row in range(90))


def test_other_columns_become_question_and_answer(tmp_path):
    rows = [{"prompt": f"q{n}", "reply": f"a{n}", "question": "not this"} for n in range(20)]
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    options = ("--question", "prompt", "--answer", "reply", "--test", "0.2", "--validation", "0.2")
    assert call("build", tmp_path / "rows.json", "-o", tmp_path / "made", *options).exit_code == 0
    assert read(tmp_path / "made" / "test.jsonl")[0].keys() == {"question", "answer"}
    assert read(tmp_path / "made" / "test.jsonl")[0]["question"].startswith("q")


def test_csv_and_parquet_build_the_same_rows_as_json(tmp_path, few):
    import datasets

    made = datasets.Dataset.from_list(read(few))
    made.to_csv(tmp_path / "few.csv")
    made.to_parquet(tmp_path / "few.parquet")
    texts = set()
    for suffix in ("jsonl", "csv", "parquet"):
        assert call("build", tmp_path / f"few.{suffix}", "-o", tmp_path / suffix).exit_code == 0
        texts.add((tmp_path / suffix / "train.jsonl").read_bytes())
    assert len(texts) == 1


def test_a_row_without_an_answer_is_said(tmp_path, few):
    few.write_text(few.read_text() + '{"question": "And?", "answer": null}\n')
    done = call("build", few, "-o", tmp_path / "made")
    assert "1 row without a question or an answer: training refuses them" in done.stderr
    assert json.loads((tmp_path / "made" / "build.json").read_text())["empty"] == 1


def test_build_replaces_its_own_folder_and_no_other(tmp_path, few):
    (tmp_path / "mine").mkdir()
    assert call("build", few, "-o", tmp_path / "mine").exit_code == 0
    assert call("build", few, "-o", tmp_path / "mine").exit_code == 0
    (tmp_path / "mine" / "notes.txt").write_text("kept")
    assert "holds notes.txt, which no build wrote" in failed("build", few, "-o", tmp_path / "mine")
    assert (tmp_path / "mine" / "notes.txt").read_text() == "kept"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"question": "a", "anser": "b"}\n', ["no column 'answer', only question, anser", "--answer"]),
        ('{"question": "a", "answer": 5}\n', ["row 1: 'answer' is 5"]),
        ('{"question": "a", "answer": "b"}\n', ["1 rows are too few"]),
        ('{"question": "a", "answ', ["cannot be read"]),
        ("", ["cannot be read"]),
    ],
)
def test_bad_rows_are_one_sentence_and_leave_nothing(tmp_path, text, words):
    (tmp_path / "rows.jsonl").write_text(text)
    sentence = failed("build", tmp_path / "rows.jsonl", "-o", tmp_path / "made")
    assert all(word in sentence for word in words), sentence
    assert [path.name for path in tmp_path.iterdir()] == ["rows.jsonl"]


def test_a_source_that_is_nowhere_is_one_sentence(tmp_path):
    assert "no file or folder ./nowhere/atall" in failed("stats", "./nowhere/atall", code=2)
    assert "no file or folder rows.jsonl" in failed("stats", "rows.jsonl", code=2)
    (tmp_path / "rows.txt").write_text("a")
    assert "rows.txt: what kind of file" in failed("stats", tmp_path / "rows.txt")


def test_without_the_hub_build_asks_for_local_files(tmp_path):
    sentence = failed("build", "-o", tmp_path / "made")
    assert sentence == "Svngoku/Global-African-History-QA: the Hub cannot be reached; offline, give local files."
    assert not list(tmp_path.iterdir())


def test_one_split_of_a_source_is_named_after_a_colon(tmp_path):
    embedded = ROOT / "data" / "african_history"
    assert "has the splits train, validation, test" in failed("build", embedded, "-o", tmp_path / "made", code=2)
    done = call("build", f"{embedded}:test", f"{embedded}:validation[:20]", "-o", tmp_path / "made")
    assert done.exit_code == 0, done.output
    assert sum(len(read(path)) for path in (tmp_path / "made").glob("*.jsonl")) == 120


def test_a_file_that_belongs_to_no_split_is_said(tmp_path):
    write(tmp_path / "set" / "train.jsonl", ["a"])
    write(tmp_path / "set" / "more.jsonl", ["b"])
    assert "not read, as no split or other kind of file: more.jsonl" in call("stats", tmp_path / "set").stderr


def test_stats_count_rows_cells_repeats_and_characters(tmp_path):
    path = tmp_path / "rows.jsonl"
    rows = [("Who?", "Me."), ("who", " "), ("", "No one at all."), *((f"Why {n}?", "x" * n) for n in range(1, 18))]
    path.write_text("".join(json.dumps({"question": q, "answer": a}) + "\n" for q, a in rows))
    found = json.loads(call("stats", path, "--json").stdout)["train"]
    assert (found["rows"], found["blank"], found["repeated"]) == (20, 2, 1)
    assert found["characters"]["answer"] == {"median": 8, "p95": 16, "longest": 17}
    assert found["characters"]["both"]["longest"] == 17 + len("Why 17?")
    lines = call("stats", path).stdout.splitlines()
    assert lines[0].split("  ")[0] == "split" and lines[1].split() == ["train", "20", "2", "1"]
    assert not [line for line in lines if "interval" in line]


@pytest.mark.slow
def test_tokens_are_counted_and_rows_that_would_be_cut(embedded_model):
    source = ROOT / "data" / "african_history" / "test.jsonl"
    done = call("stats", source, "--tokenizer", embedded_model, "--sequence-len", "60", "--json")
    found = json.loads(done.stdout)["train"]
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(embedded_model)
    sums = sorted(
        sum(len(tokenizer(row[name])["input_ids"]) for name in ("question", "answer")) for row in read(source)
    )
    assert found["tokens"]["both"] == {"median": sums[49], "p95": sums[94], "longest": sums[99]}
    assert found["over"] == sum(value > 60 for value in sums) > 0
    assert "over 60 tokens" in call("stats", source, "--tokenizer", embedded_model, "--sequence-len", "60").stdout


def test_a_tokenizer_that_is_none_and_a_limit_without_one_are_errors(tmp_path, few):
    assert "cannot be loaded" in failed("stats", few, "--tokenizer", tmp_path)
    assert "name the --tokenizer" in failed("stats", few, "--sequence-len", "10", code=2)


def test_special_tokens_of_a_model_are_escaped_or_their_rows_dropped(tmp_path, embedded_model):
    from lora_recipes.data import special_tokens

    from transformers import AutoTokenizer

    questions = [f"Who ruled {n}?" for n in range(30)] + ["Who?<|im_end|>", "<|im_start|>"]
    source = write(tmp_path / "rows.jsonl", questions)
    tokenizer = AutoTokenizer.from_pretrained(embedded_model)
    for how, rows in (("escape", 32), ("drop", 30)):
        options = ("--special-tokens", how, "--tokenizer", embedded_model, "--test", "0.1", "--validation", "0.1")
        done = call("build", source, "-o", tmp_path / how, *options)
        assert done.exit_code == 0, done.output
        assert f"special tokens in 2 rows: {'escaped' if how == 'escape' else 'dropped'}" in done.stderr
        made = [row["question"] for path in (tmp_path / how).glob("*.jsonl") for row in read(path)]
        assert len(made) == rows and set(questions[:30]) <= set(made)
        assert not special_tokens.ids(tokenizer) & {token for text in made for token in tokenizer(text)["input_ids"]}
        found = json.loads((tmp_path / how / "build.json").read_text())["special tokens"]
        assert found == {"done": how, "of": str(embedded_model), "rows": 2}
    assert "belong together" in failed("build", source, "-o", tmp_path / "x", "--special-tokens", "drop", code=2)
