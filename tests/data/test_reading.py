"""Files are read as they are written: no type is guessed, and what no trainer can read is one sentence."""

import json
import os
import subprocess
import sys

from lora_recipes import ROOT
from lora_recipes.data import sources

import click
import pytest
from datacalls import call, read


def answers(path, split="train", **named):
    return [row["answer"] for row in sources.load(str(path), split, **named)[split].rows]


@pytest.mark.parametrize(
    "cells",
    [
        ["0000", "1.50", "007"],
        ["None", "NA", "null", "nan", "N/A"],
        ['"1999"', '"2001"'],
        ["2024-01-02", "2024-01-03"],
        ["True", "False"],
        ["1e5", "9" * 30],
    ],
)
def test_cells_of_a_csv_file_are_texts_as_written(tmp_path, cells):
    (tmp_path / "rows.csv").write_text("question,answer\n" + "".join(f"q,{cell}\n" for cell in cells))
    assert answers(tmp_path / "rows.csv") == [cell.strip('"') for cell in cells]


def test_a_csv_column_that_looks_numeric_after_ten_thousand_rows_is_text(tmp_path):
    cells = ["word"] * 10_001 + ["0000", "1.50"] * 100
    (tmp_path / "rows.csv").write_text("question,answer\n" + "".join(f"q,{cell}\n" for cell in cells))
    assert answers(tmp_path / "rows.csv") == cells


def test_answers_of_json_lines_that_are_dates_are_texts(tmp_path):
    dates = ["2024-01-02", "2024-01-02 03:04:05", "2024-01-02T03:04:05"]
    for name in ("rows.jsonl", "rows.json"):
        rows = [{"question": "When?", "answer": date} for date in dates]
        text = "".join(json.dumps(row) + "\n" for row in rows) if name == "rows.jsonl" else json.dumps(rows, indent=2)
        (tmp_path / name).write_text(text)
        assert answers(tmp_path / name) == dates


def test_a_folder_is_read_as_its_files_are(tmp_path):
    (tmp_path / "train.csv").write_text("question,answer\nq,0000\n")
    (tmp_path / "test.csv").write_text("question,answer\nq,NA\n")
    assert (answers(tmp_path), answers(tmp_path, "test")) == (["0000"], ["NA"])


def test_build_writes_what_looks_like_no_text_as_it_is(tmp_path):
    cells = ["0000", "NA", "None", "1.50"] * 5
    (tmp_path / "rows.csv").write_text("question,answer\n" + "".join(f"q{n},{c}\n" for n, c in enumerate(cells)))
    done = call("build", tmp_path / "rows.csv", "-o", tmp_path / "made", "--test", "0.2", "--validation", "0.2")
    assert done.exit_code == 0 and "without" not in done.stderr
    made = [
        row["answer"] for part in ("train", "validation", "test") for row in read(tmp_path / "made" / f"{part}.jsonl")
    ]
    assert sorted(made) == sorted(cells)


def test_values_of_several_types_stay_as_they_are(tmp_path):
    """Tool calls, whose arguments differ from row to row: the datasets library keeps them as JSON text."""
    rows = [{"turns": [{"arguments": {"x": value}}]} for value in (1, "one", [1], None)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert sources.load(str(tmp_path / "rows.jsonl"), "train")["train"].rows == rows


def test_what_the_library_keeps_as_json_is_decoded(tmp_path):
    import datasets

    rows = [{"turns": [{"arguments": {"x": value}}]} for value in (1, "one")]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    datasets.load_dataset("json", data_files=str(tmp_path / "rows.jsonl"), split="train").save_to_disk(
        tmp_path / "saved"
    )
    assert sources.load(str(tmp_path / "saved"), "train")["train"].rows == rows


@pytest.mark.parametrize("suffix", ["arrow", "parquet", "txt", "jsonl.gz"])
def test_other_kinds_of_files_are_read_as_before(tmp_path, suffix):
    import gzip

    import datasets

    data = datasets.Dataset.from_list([{"text": "one"}, {"text": "two"}])
    path = tmp_path / f"rows.{suffix}"
    if suffix == "arrow":
        data.save_to_disk(tmp_path / "saved")
        next((tmp_path / "saved").glob("*.arrow")).rename(path)
    elif suffix == "parquet":
        data.to_parquet(path)
    elif suffix == "txt":
        path.write_text("one\ntwo\n")
    else:
        path.write_bytes(gzip.compress(b'{"text": "one"}\n{"text": "two"}\n'))
    assert sources.load(str(path), "train")["train"].rows == data.to_list()
    assert sources.load(str(path), "train[:1]")["train[:1]"].rows == data.to_list()[:1]


def test_a_folder_that_save_to_disk_wrote_is_read_as_axolotl_reads_it(tmp_path):
    import datasets

    parts = {name: datasets.Dataset.from_list([{"answer": name}]) for name in ("train", "test")}
    parts["train"].save_to_disk(tmp_path / "one")
    datasets.DatasetDict(parts).save_to_disk(tmp_path / "two")
    assert answers(tmp_path / "one") == answers(tmp_path / "two") == ["train"]
    assert answers(tmp_path / "two", "test") == ["test"]
    with pytest.raises(click.ClickException, match=r"one \(test\) cannot be read: Unknown split"):
        answers(tmp_path / "one", "test")
    assert call("stats", tmp_path / "two", "--question", "answer").exit_code == 0


DEEP = '{"question": "q", "answer": ' + "[" * 200_000 + "]" * 200_000 + "}"
WIDE = json.dumps({f"c{n}": "x" for n in range(20_000)})


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("rows.jsonl", DEEP, "line 1: lists and mappings are nested more than 64 deep"),
        ("rows.jsonl", '{"answer": ' + "[" * 65 + "]" * 65 + "}", "line 1: lists and mappings are nested more than 64"),
        ("rows.json", f"[{DEEP}]", "nested more than 64 deep"),
        ("rows.jsonl", WIDE, "row 1: 20,000 columns, where a question and an answer were expected"),
        ("rows.csv", ",".join(f"c{n}" for n in range(20_000)) + "\n", "row 1: 20,000 columns"),
        ("rows.csv", "question,answer\na,b,c\n", "more cells than the first line has columns"),
        ("rows.jsonl", "\n\n", "cannot be read: it is empty"),
        ("rows.jsonl", '{"a": "b"}\n{"a":\n', "line 2 cannot be read: Expecting value (column 6)"),
        ("rows.json", '[{"a": "b"},\n{"a"}]', "line 2 cannot be read"),
        ("rows.jsonl", '{"a": "b"}\nnull\n', "line 2: null, where a row was expected"),
        ("rows.json", '[{"a": "b"}, 5]', "row 2: 5, where a row was expected"),
        ("rows.jsonl", '{"a": "\\ud800"}', "line 1: half of a pair of"),
        ("rows.jsonl", '{"a": ' + "1" * 5000 + "}", "line 1 cannot be read: Exceeds the limit"),
    ],
    ids=range(13),
)
def test_what_cannot_be_read_is_one_sentence_with_the_place(tmp_path, name, text, words):
    (tmp_path / name).write_text(text)
    with pytest.raises(click.ClickException) as caught:
        sources.load(str(tmp_path / name))
    assert words in caught.value.message and name in caught.value.message
    assert "\n" not in caught.value.message and len(caught.value.message) < 400


@pytest.mark.parametrize(("name", "works"), [("rows.jsonl", True), ("rows.jsonl.gz", False)])
def test_a_cache_that_cannot_be_written_is_not_blamed_on_the_data(tmp_path, name, works):
    """Files as they are need none; those that the datasets library unpacks do."""
    import gzip

    text = b'{"question": "a", "answer": "b"}\n'
    (tmp_path / name).write_bytes(text if works else gzip.compress(text))
    (tmp_path / "file").write_text("")
    code = f"from lora_recipes.data import sources; print(sources.load({str(tmp_path / name)!r}))"
    environment = {**os.environ, "HF_HOME": str(tmp_path / "file" / "home")}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, env=environment)
    assert (done.returncode == 0) == works, done.stderr
    if not works:
        last = done.stderr.strip().splitlines()[-1]
        assert f"the cache {tmp_path}/file/home" in last and "set HF_HOME to a folder that can be" in last
        assert "Check path" not in last
