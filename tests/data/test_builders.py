"""Readers of the datasets library: one that runs what it reads is refused before anything is opened, by every tool."""

import os
import pickle
import subprocess
import sys
from pathlib import Path

from lora_recipes import ROOT
from lora_recipes.axolotl import command
from lora_recipes.config import runfile
from lora_recipes.data import builders, rows

import click
import pytest
from datacalls import failed


class Payload:
    """Unpickled, it makes a file."""

    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return os.mkdir, (str(self.mark),)


@pytest.fixture
def mark(tmp_path):
    """What is there when the pickle x.pkl beside it was read."""
    (tmp_path / "x.pkl").write_bytes(pickle.dumps(Payload(tmp_path / "was-run")))
    return tmp_path / "was-run"


NAMED = {
    "by its name": ("path=pandas", "data_files={folder}/x.pkl"),
    "by its name on the Hub": ("path=hf://datasets/pandas", "data_files={folder}/x.pkl"),
    "as a file's type": ("path={folder}/x.pkl", "ds_type=pandas"),
    "as a folder of scripts": ("path={folder}/x.pkl", "ds_type={folder}"),
    "as an absent type": ("path={folder}/x.pkl", "ds_type=sql"),
}


@pytest.fixture(params=NAMED)
def run_path(request, run_file, mark):
    settings = [f"datasets.0.{setting.format(folder=mark.parent)}" for setting in NAMED[request.param]]
    return run_file("peft", *settings)


def test_the_pickle_would_run(mark):
    import datasets

    with pytest.raises(Exception, match="."):
        datasets.load_dataset("pandas", data_files=str(mark.parent / "x.pkl"))
    assert mark.exists()


def test_rows_are_not_read_by_a_reader_that_may_run_them(run_path, mark):
    with pytest.raises(click.ClickException, match=r"names the reader .* json, csv, parquet, arrow, text work"):
        rows.load_rows(runfile.load(run_path), "train")
    assert not mark.exists()


def test_the_pipe_refuses_it_before_axolotl_begins(run_path, mark):
    with pytest.raises(click.ClickException, match=r"line \d+: datasets.0.(path|ds_type): .* names the reader"):
        command.read(str(run_path))
    assert not mark.exists()


@pytest.mark.parametrize("key", ["test_datasets", "pretraining_dataset"])
def test_every_key_that_names_data_is_looked_at(run_file, mark, key):
    text = run_file("lora").read_text()
    entry = f"\n  - path: pandas\n    data_files: {mark.parent}/x.pkl\n"
    if key == "test_datasets":
        text = text[: text.index("test_datasets:")]
        text += f"output_dir: {mark.parent}/out\n" * ("output_dir:" not in text)
    path = mark.parent / "run.yaml"
    path.write_text(f"{text}\n{key}:{entry}", encoding="utf-8")
    with pytest.raises(click.ClickException, match=rf"{key}.0.path: path names the reader 'pandas'"):
        builders.require_readable(runfile.load(path))


def test_a_bare_name_and_a_mapping_are_data_sets_too():
    found = dict(builders.entries({"pretraining_dataset": "pandas", "datasets": {"path": "a"}}))
    assert found == {"pretraining_dataset": {"path": "pandas"}, "datasets": {"path": "a"}}


def test_every_reader_of_the_library_but_the_known_is_refused():
    from datasets.packaged_modules import _PACKAGED_DATASETS_MODULES

    assert set(builders.KNOWN) < set(_PACKAGED_DATASETS_MODULES)
    for name in _PACKAGED_DATASETS_MODULES:
        assert (builders.refused(name) is None) == (builders.refused("rows", name) is None) == (name in builders.KNOWN)


def test_a_folder_whose_files_are_for_another_reader_is_refused(tmp_path):
    import tarfile

    (tmp_path / "rows.json").write_text("{}")
    (tmp_path / "folder").mkdir()
    with tarfile.open(tmp_path / "folder" / "x.tar", "w") as made:
        made.add(tmp_path / "rows.json", "a.json")
    assert "for the reader 'webdataset'" in failed("stats", tmp_path / "folder")


@pytest.mark.slow
def test_no_tool_runs_the_pickle(run_file, tool, tiny, mark):
    settings = [f"datasets.0.{setting.format(folder=mark.parent)}" for setting in NAMED["as a file's type"]]
    path = run_file("peft", f"base_model={tiny}", "bf16=false", *settings)
    checked = tool("check", path, cwd=mark.parent)
    assert checked.returncode == 1 and "names the reader 'pandas'" in checked.stdout + checked.stderr
    for done in (
        tool("train", path),
        tool("eval", "--base", path),
        tool("data", "stats", mark.parent / "x.pkl"),
        tool("data", "stats", "pandas"),
        subprocess.run(
            [Path(sys.executable).with_name("axolotl"), "train", "-"],
            cwd=ROOT,
            capture_output=True,
            text=True,
            input=path.read_text(),
        ),
    ):
        assert done.returncode in (1, 2) and "Traceback" not in done.stderr, done.stderr
        assert len(done.stderr.strip().splitlines()) <= 4, done.stderr
    assert not mark.exists()


@pytest.mark.parametrize("name", ["rows[1].jsonl", "rows*.jsonl", "rows?.jsonl", "a::rows.jsonl"])
def test_a_name_that_looks_like_a_pattern_is_literal_here_and_refused_in_the_pipe(run_file, tmp_path, name):
    """Axolotl would read rows1.jsonl."""
    for file, answer in (("rows1.jsonl", "of another file"), (name, "as written")):
        (tmp_path / file).write_text(f'{{"question": "a", "answer": "{answer}"}}\n')
    (tmp_path / "other").mkdir()
    for settings in ((f"path={tmp_path}/{name}",), (f"path={tmp_path}/other", f"data_files={tmp_path}/{name}")):
        run = runfile.load(run_file("lora", *(f"datasets.0.{one}" for one in settings)))
        assert rows.load_rows(run, "train") == [{"question": "a", "answer": "as written"}]
        with pytest.raises(click.ClickException, match=r"takes .* in a path for a pattern and reads other files"):
            builders.require_readable(run)


def test_a_pattern_under_data_files_stands_for_the_files_that_match(run_file, tmp_path):
    for number in (1, 2):
        (tmp_path / f"rows{number}.jsonl").write_text(f'{{"question": "a", "answer": "{number}."}}\n')
    run = runfile.load(run_file("lora", f"datasets.0.path={tmp_path}", f"datasets.0.data_files={tmp_path}/rows?.jsonl"))
    assert [row["answer"] for row in rows.load_rows(run, "train")] == ["1.", "2."]
    builders.require_readable(run)


def test_a_folder_whose_name_is_a_pattern_is_one_sentence(tmp_path):
    (tmp_path / "rows[1]").mkdir()
    (tmp_path / "rows[1]" / "train.jsonl").write_text('{"question": "a", "answer": "b"}\n')
    assert "is a pattern to the datasets library; rename the folder" in failed("stats", tmp_path / "rows[1]")
