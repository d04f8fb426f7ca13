"""Data files: what is wrong with them is said by file, row and column."""

import itertools
import json
import re

from lora_recipes import ROOT
from lora_recipes.config import runfile, yamlfile
from lora_recipes.data import rows
from lora_recipes.rendering import render

import click
import pytest


def run_on(run_file, path):
    return runfile.load(run_file("lora", f"datasets.0.path={path}", f"test_datasets.0.path={path}"))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", ["cannot be read"]),
        ('{"question": "a", "anser": "b"}\n', ["no column 'answer'", "question, anser", "field_output"]),
        ('{"question": "a", "answer": ""}\n', ["row 1", "'answer' is ''"]),
        ('{"question": "a", "answer": "b"}\n{"question": null, "answer": "b"}\n', ["row 2", "'question' is None"]),
        ('{"question": 1, "answer": "b"}\n', ["row 1", "'question' is 1"]),
        ('{"question": "a", "answer"', ["cannot be read"]),
    ],
)
def test_bad_data_are_one_sentence_with_the_place(run_file, tmp_path, text, words):
    (tmp_path / "rows.jsonl").write_text(text)
    with pytest.raises(click.ClickException) as caught:
        rows.load_rows(run_on(run_file, tmp_path / "rows.jsonl"), "train")
    assert all(word in caught.value.message for word in ["rows.jsonl", "line", *words]), caught.value.message
    assert "\n" not in caught.value.message


def test_an_unknown_split_is_one_sentence(run_file):
    with pytest.raises(click.ClickException, match=r"\(tst\) cannot be read: .*tst"):
        rows.load_rows(runfile.load(run_file("lora")), "tst")


def test_a_single_file_has_no_test_rows(run_file, tmp_path):
    (tmp_path / "rows.jsonl").write_text('{"question": "a", "answer": "b"}\n')
    with pytest.raises(click.ClickException, match=r"rows.jsonl \(test\) cannot be read: Unknown split"):
        rows.load_rows(run_on(run_file, tmp_path / "rows.jsonl"), "test")


def test_data_that_are_nowhere_are_one_sentence(run_file):
    with pytest.raises(click.ClickException, match=r"0.path: nowhere/atall: the Hub cannot be reached; offline"):
        rows.load_rows(run_on(run_file, "nowhere/atall"), "train")


@pytest.mark.parametrize("suffix", ["jsonl", "json", "csv", "parquet"])
def test_json_csv_and_parquet_give_the_same_rows(run_file, tmp_path, suffix):
    import datasets

    data = [{"question": "Où, 1?", "answer": 'a "b"'}, {"question": "c", "answer": "d\ne"}]
    path, made = tmp_path / f"rows.{suffix}", datasets.Dataset.from_list(data)
    {"jsonl": made.to_json, "json": made.to_json, "csv": made.to_csv, "parquet": made.to_parquet}[suffix](path)
    assert rows.load_rows(run_on(run_file, path), "train") == data


def test_a_key_of_a_data_set_that_only_axolotl_knows_is_an_error(run_file):
    run = runfile.load(run_file("lora", "datasets.0.shards=3"))
    with pytest.raises(click.ClickException, match=r"datasets.0.shards: only Axolotl knows this"):
        rows.load_rows(run, "train")


TEN = [{"question": f"q{n}", "answer": f"a{n}"} for n in range(10)]
SLICED = ("datasets.0.split=train[:80%]", "test_datasets.0.split=train[80%:90%]")


@pytest.fixture
def sliced(run_file, tmp_path):
    """A run file on one JSONL of ten rows, divided by slices."""

    def write(*settings):
        path = tmp_path / "ten.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in TEN))
        data = (f"datasets.0.path={path}", f"test_datasets.0.path={path}")
        return runfile.load(run_file("lora", *data, *SLICED, *settings))

    return write


def test_a_sliced_data_set_s_test_rows_are_a_slice_too(sliced):
    parts = ("train", "validation", "train[90%:]")
    assert [rows.load_rows(sliced(), part) for part in parts] == [TEN[:8], TEN[8:9], TEN[9:]]


def test_a_split_that_is_named_in_the_call_is_taken_as_it_is(sliced):
    assert rows.load_rows(sliced(), "train[:2]+train[9:]") == [*TEN[:2], TEN[9]]


def test_a_sliced_data_set_that_names_no_test_rows_is_one_sentence(sliced):
    with pytest.raises(click.ClickException, match=r"datasets.0.path: .*\(test\) cannot be read: Unknown split"):
        rows.load_rows(sliced(), "test")


def test_the_alpaca_recipes_divide_their_rows_as_published():
    from datasets import ReadInstruction

    for recipe, variant in (("phi1.5-alpaca-gpt4", "lora"), ("phi1.5-alpaca-gpt4-as-published", "peft+qlora")):
        config = yamlfile.load(render.render(recipe, variant), "rendered").data
        splits = [config["datasets"][0]["split"], config["test_datasets"][0]["split"], "train[90%:]"]
        slices = [ReadInstruction.from_spec(split).to_absolute({"train": 52_002})[0] for split in splits]
        assert [(one.from_, one.to) for one in slices] == [(0, 41_602), (41_602, 46_802), (46_802, 52_002)]


PARTS = {"train": 400, "validation": 50, "test": 100}


def embedded(part):
    return [json.loads(line) for line in (ROOT / "data" / "african_history" / f"{part}.jsonl").read_text().splitlines()]


@pytest.mark.parametrize(("part", "least"), PARTS.items())
def test_the_embedded_data_are_whole(part, least):
    found = embedded(part)
    assert len(found) >= least
    for row in found:
        assert set(row) == {"question", "answer", "topic"}
        assert row["question"].endswith(("?", ".")) and 10 <= len(row["answer"].split()) <= 60
        assert len(re.findall(r"[.!?](?:\s|$)", row["answer"])) <= 6


def words_of(text):
    stop = set(
        [
            "the",
            "a",
            "an",
            "of",
            "in",
            "and",
            "to",
            "was",
            "were",
            "is",
            "did",
            "do",
            "does",
            "what",
            "which",
            "who",
            "whom",
            "when",
            "where",
            "why",
            "how",
            "by",
            "for",
            "on",
            "at",
            "as",
            "with",
            "from",
            "its",
            "it",
        ]
    )
    return {word for word in re.findall(r"[a-z0-9]+", text.lower()) if word not in stop}


def overlap(one, two):
    return len(one & two) / len(one | two)


def test_no_question_is_repeated_or_paraphrased_across_splits():
    """By the share of content words in common. Rows of different facts reach 0.43 in the question
    and 0.17 in the answer here; a paraphrase keeps its names and its answer, and is above either bound."""
    parts = {
        part: [(row["question"], words_of(row["question"]), words_of(row["answer"])) for row in embedded(part)]
        for part in PARTS
    }
    near = [
        (one[0], two[0])
        for first, second in itertools.combinations(PARTS, 2)
        for one, two in itertools.product(parts[first], parts[second])
        if overlap(one[1], two[1]) >= 0.5 or overlap(one[2], two[2]) >= 0.3
    ]
    assert not near


def test_no_answer_is_repeated():
    answers = [row["answer"] for part in PARTS for row in embedded(part)]
    assert len(set(answers)) == len(answers)
