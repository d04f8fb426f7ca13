"""The training benchmark gives every way the same rows, texts and tokens, and reads their times alike."""

import json
import sys
from pathlib import Path

import alpaca
import click
import pytest
import timed
import training
import yaml


def written(folder, rows):
    path = folder / "rows.json"
    path.write_text(json.dumps(rows))
    return path


ROWS = [
    {"instruction": f"Name a river {n}.", "input": "Africa" * (n % 2), "output": "The Nile. " * n} for n in range(60)
]


def test_rows_without_an_answer_are_left_out_and_missing_columns_are_empty(tmp_path):
    path = written(tmp_path, [{"instruction": "a", "output": "b"}, {"instruction": "a", "input": "x", "output": " "}])
    assert alpaca.load(path) == [{"instruction": "a", "input": "", "output": "b"}]


@pytest.mark.parametrize("text", ["no JSON", '{"a": 1}', "[1, 2]"])
def test_a_file_of_something_else_is_refused_in_a_sentence(tmp_path, text):
    (tmp_path / "rows.json").write_text(text)
    with pytest.raises(click.ClickException, match="not a JSON list of rows"):
        alpaca.load(tmp_path / "rows.json")


def test_without_a_file_there_are_rows_as_long_as_the_real_ones_and_the_same_each_time(embedded_model):
    from transformers import AutoTokenizer

    rows, tokenizer = alpaca.load(None), AutoTokenizer.from_pretrained(embedded_model)
    assert rows == alpaca.load(None) and len({json.dumps(row) for row in rows}) == len(rows) == 999
    lengths = {name: [len(ids) for ids in tokenizer([row[name] for row in rows])["input_ids"]] for name in rows[0]}
    real = {"instruction": 12271, "input": 6290, "output": 150126}
    assert sum(map(sum, lengths.values())) == pytest.approx(sum(real.values()), rel=0.03)
    found = sorted(length for length, row in zip(lengths["output"], rows, strict=True) if not row["input"])
    assert found[len(found) // 2] == pytest.approx(alpaca.OUTPUT[10], rel=0.1)
    assert sum(row["input"] > "" for row in rows) == pytest.approx(alpaca.WITH_INPUT, rel=0.05)


def test_every_way_trains_the_same_tokens(tmp_path, monkeypatch):
    """LLaMA-Factory encodes prompt and answer apart and adds nothing of its own (template: empty)."""
    from lora_recipes.config import runfile
    from lora_recipes.data import prompts
    from lora_recipes.models import loading

    monkeypatch.setattr(training, "WORK", tmp_path / "work")
    monkeypatch.setattr(training, "VALIDATION", 4)
    settings = training.prepare(written(tmp_path, ROWS[::-1]), 12, 128)
    run = runfile.load(tmp_path / "work" / "plain.yaml")
    tokenizer, fmt = loading.load_tokenizer(run), prompts.prompt_format(run, 0, "datasets")
    kept = json.loads((tmp_path / "work" / "train.json").read_text())
    ours = [prompts.example(tokenizer, fmt, row) for row in kept]
    assert all(len(one["input_ids"]) <= 128 for one in ours) and len(kept) == settings["rows"] == 12
    assert settings["tokens"] == sum(len(one["input_ids"]) for one in ours)
    texts = json.loads((tmp_path / "work" / "llamafactory" / "bench.json").read_text())
    its = [tokenizer.encode(row["prompt"]) + tokenizer.encode(row["answer"]) for row in texts]
    assert its == [one["input_ids"] for one in ours]
    assert not runfile.load(tmp_path / "work" / "reference.yaml").config["bf16"]


@pytest.mark.parametrize(("has_bf16", "dtype"), [(True, "bfloat16"), (False, "float32")])
def test_an_emulated_bf16_is_not_measured(tmp_path, monkeypatch, has_bf16, dtype):
    from lora_recipes.config import runfile
    from lora_recipes.support import processes

    monkeypatch.setattr(processes, "has_bf16", lambda: has_bf16)
    monkeypatch.setattr(training, "WORK", tmp_path / "work")
    monkeypatch.setattr(training, "VALIDATION", 4)
    settings = training.prepare(written(tmp_path, ROWS), 8, 512)
    ours = tmp_path / "work" / "plain.yaml"
    assert settings["dtype"] == dtype and runfile.load(ours).config["bf16"] is has_bf16
    monkeypatch.setattr(training.peers, "absent", lambda: "")
    assert bool(training._contender("reference-bf16", settings).absent) is not has_bf16
    assert training._contender("llamafactory-packed", settings).absent == ""
    its = yaml.safe_load((tmp_path / "work" / "llamafactory.llamafactory.yaml").read_text())
    base = Path(its["model_name_or_path"])
    assert its["bf16"] is has_bf16 and json.loads((base / "config.json").read_text())["dtype"] == dtype


def test_fewer_rows_than_wanted_are_an_error_that_says_how_many_there_are(tmp_path, monkeypatch):
    monkeypatch.setattr(training, "WORK", tmp_path / "work")
    monkeypatch.setattr(training, "VALIDATION", 4)
    with pytest.raises(click.ClickException, match="give --rows 10 or fewer"):
        training.prepare(written(tmp_path, ROWS[1:15]), 40, 512)


@pytest.mark.parametrize(
    ("line", "is_step"),
    [
        ("step 3/12  loss 1.604  lr 1.0e-04  12 s left", True),
        ("{'loss': '1.9158', 'grad_norm': '0.32', 'epoch': '0.25'}", True),
        ("step 3/12  evaluation loss 1.604", False),
        ("{'train_runtime': '28.04', 'train_loss': '1.7791'}", False),
    ],
)
def test_a_finished_step_is_told_from_other_talk(line, is_step):
    assert bool(timed._STEP.search(line)) is is_step


def test_step_times_are_those_at_which_the_lines_came():
    code = "import time, sys\nfor n in (1, 2):\n  print(f'step {n}/2  loss 1.0'); time.sleep(0.3)"
    first, second = timed.step_times([sys.executable, "-c", code])
    assert 0.25 < second - first < 1


def test_a_command_that_fails_says_its_last_words():
    with pytest.raises(SystemExit, match="no such model"):
        timed.step_times([sys.executable, "-c", "raise SystemExit('no such model')"])


def test_tokens_are_read_where_the_trainer_counts_them_with_every_step():
    def seen(*entries):
        return timed.Trained(1.0, [], list(entries)).seen

    assert seen({"loss": 1, "num_tokens": 5}, {"loss": 1, "num_tokens": 9}, {"train_runtime": 3}) == [5, 9]
    assert seen({"loss": 1, "num_tokens": 5}, {"loss": 1}) is None
    assert seen({"train_runtime": 3}) is None


def test_the_whole_runtime_is_the_last_one_noted():
    assert timed.runtime([{"train_runtime": 7.2}, {"loss": 1}, {"train_runtime": 28.0}]) == 28.0
