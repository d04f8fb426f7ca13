"""The demo takes the published run files, and float32 where the processor emulates bf16."""

from lora_recipes.config import runfile
from lora_recipes.support import processes

import demo
import pytest


@pytest.fixture
def outputs(tmp_path, monkeypatch):
    monkeypatch.setattr(demo, "ROOT", tmp_path)
    monkeypatch.setattr(demo, "OUTPUTS", tmp_path / "outputs")
    return tmp_path


def test_the_published_run_files_are_used_where_the_processor_has_bf16(outputs, monkeypatch):
    monkeypatch.setattr(processes, "has_bf16", lambda: True)
    render, runs = demo._run_files()
    assert "--set" not in render and runs == [f"recipes/{demo.RECIPE}/{name}.yaml" for name in ("lora", "peft")]
    assert not list(outputs.iterdir())


def test_both_trainers_get_float32_where_it_has_none(outputs, monkeypatch):
    monkeypatch.setattr(processes, "has_bf16", lambda: False)
    render, runs = demo._run_files()
    assert [runfile.load(outputs / run).config["bf16"] for run in runs] == [False, False]
    commands = [command for _, command in demo._steps(render, runs)]
    assert "--set bf16=false --variant lora | axolotl train -" in commands[1] and runs[1] in commands[2]
