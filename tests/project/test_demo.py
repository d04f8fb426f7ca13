"""The demo takes the published run files, and float32 where the processor emulates bf16."""

import json

from lora_recipes.config import runfile
from lora_recipes.support import processes

import click
import demo
import pytest


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    monkeypatch.setattr(demo, "ROOT", tmp_path)
    (tmp_path / demo.OUTPUTS).mkdir(parents=True)
    return tmp_path


def test_the_published_run_files_are_used_where_the_processor_has_bf16(checkout, monkeypatch):
    monkeypatch.setattr(processes, "has_bf16", lambda: True)
    options, runs = demo.run_files()
    assert options == "" and runs == [f"recipes/{demo.RECIPE}/{name}.yaml" for name in ("lora", "peft")]
    assert not list((checkout / demo.OUTPUTS).iterdir())


def test_both_trainers_get_float32_where_it_has_none(checkout, monkeypatch):
    monkeypatch.setattr(processes, "has_bf16", lambda: False)
    options, runs = demo.run_files()
    assert [runfile.load(checkout / run).config["bf16"] for run in runs] == [False, False]
    commands = [command for _, command in demo.commands(options, *runs)]
    assert "--set bf16=false --variant lora | axolotl train -" in commands[1] and runs[1] in commands[2]


def test_of_axolotl_the_lines_about_the_run_are_shown_and_all_are_kept(checkout, capfd):
    demo.run(": axolotl; printf 'logo\\n 0%%|  | 0/2\\r 50%%|# | 1/2 [2 s/it]step 1/2  loss 3.1\\n'")
    assert capfd.readouterr().out == "step 1/2  loss 3.1\n"
    assert (checkout / demo.LOG).read_bytes().startswith(b"logo\n 0%|  | 0/2\r 50%|")


@pytest.mark.parametrize("command", ["exit 3", ": axolotl; exit 3"])
def test_a_failed_step_ends_the_demo(checkout, command):
    with pytest.raises(click.ClickException, match="failed: see above"):
        demo.run(command)


def test_the_summary_comes_from_the_result_files(checkout):
    interval = {"mean": 0.04, "low": 0.03, "high": 0.05}
    folder = checkout / demo.OUTPUTS / "lora"
    folder.mkdir()
    evaluation = {"metrics": {"bertscore_f1": interval}, "differences": {"base": interval}}
    (folder / "result.json").write_text(json.dumps({"recipe": "r", "variant": "lora", "evaluation": evaluation}))
    assert demo.summary("lora").endswith("F1 0.0400 [0.0300, 0.0500], difference to base +0.0400 [+0.0300, +0.0500]")
