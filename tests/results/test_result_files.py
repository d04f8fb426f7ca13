"""Result files: read with their types, and written whatever stood there before."""

import json
import os

from lora_recipes.config import runfile
from lora_recipes.results import result_files, systems

import click
import pytest

SPOILT = ['{"recipe": "r", "variant": "v", "training": []}', '{"recipe": "r"', "[]", "[" * 5000, '{"a": "\\ud800"}']


@pytest.mark.parametrize("text", SPOILT)
def test_what_was_measured_is_kept_where_the_result_file_cannot_be_read(run_file, text, capsys):
    run = runfile.load(run_file("lora"))
    run.output_dir.mkdir(parents=True)
    (run.output_dir / "result.json").write_text(text)
    path = systems.of_run(run, run.output_dir).record("training", {"metrics": {"steps": 3}})
    assert json.loads(path.read_text())["training"] == {"metrics": {"steps": 3}}
    assert (run.output_dir / "result.json.unreadable").read_text() == text
    assert "result.json.unreadable now" in capsys.readouterr().err


def test_a_pipe_in_its_place_is_set_aside_too(run_file, capsys):
    run = runfile.load(run_file("lora"))
    run.output_dir.mkdir(parents=True)
    os.mkfifo(run.output_dir / "result.json")
    assert systems.of_run(run, run.output_dir).record("merge", {"metrics": {}}).is_file()


def test_a_training_says_before_its_work_which_field_is_spoilt(run_file):
    run = runfile.load(run_file("lora"))
    run.output_dir.mkdir(parents=True)
    (run.output_dir / "result.json").write_text(SPOILT[0])
    (run.output_dir / "adapter_model.safetensors").write_bytes(b"x")
    with pytest.raises(click.ClickException, match="result.json: training: expected a mapping, found \\[\\]; correct"):
        result_files.finished(run)


def test_losses_that_are_no_numbers_are_taken_as_they_are(tmp_path):
    path = tmp_path / "result.json"
    path.write_text('{"recipe": "r", "variant": "v", "training": {"log_history": [{"step": 1, "loss": NaN}]}}')
    assert result_files.read(path)["training"]["log_history"][0]["step"] == 1
