"""The tables of the benchmarks: ratios, commands and notes."""

import importlib
import json
import re
import shlex

from lora_recipes import ROOT
from lora_recipes.support import files

import measuring
import pytest
import table
from click.testing import CliRunner

ENVIRONMENT = {"python": "3.11", "packages": {"torch": "2"}, "hardware": {"cores": 2, "processor": "A CPU"}}


def write(folder, name, ways, skipped="", stem=""):
    content = {
        "benchmark": name,
        "settings": {"rows": 96},
        "environment": ENVIRONMENT,
        "ways": {way: {"words": way, "skipped": "", "median": median} for way, median in ways.items()},
    }
    if skipped:
        content["ways"]["absent"] = {"words": "absent", "skipped": skipped, "median": {}}
    (folder / f"{stem or name}.json").write_text(json.dumps(content))


def row(text, way):
    return next(line for line in text.splitlines() if line.startswith(f"| {way} "))


def test_training_is_compared_with_the_reference_and_with_the_best_peer(tmp_path):
    rates = {"reference": 100.0, "trl": 120.0, "axolotl": 150.0, "plain": 450.0}
    ways = {way: {"tokens_per_second": rate, "peak_memory_mb": 1234} for way, rate in rates.items()}
    ways["plain"]["steady_rate_share"] = 0.4
    ways["matmul"] = {"gflops": 850.0}  # no contender
    write(tmp_path, "training", ways, skipped="no such | peer")
    text = table.tables(tmp_path)
    assert row(text, "plain") == "| plain |  | 450.0 | 4.50 | 3.00 | 40% | 1,234 | `bench/training.py --ways plain` |"
    assert row(text, "axolotl").split(" | ")[3:5] == ["1.50", "1.00"]
    assert r"not measured: no such \| peer" in row(text, "absent")
    assert "rows 96" in text and "A CPU, 2 cores" in text and "torch 2" in text


def test_less_time_is_faster(tmp_path):
    write(tmp_path, "merging", {"peft": {"seconds": 30.0}, "ours": {"seconds": 12.0}})
    assert row(table.tables(tmp_path), "ours") == "| ours | 12.0 | 2.50 | `bench/merging.py --ways ours` |"


def test_the_command_of_every_row_is_one_that_its_script_takes():
    commands = set(re.findall(r"\| `bench/(\w+)\.py(.*?)` \|", table.tables(measuring.RESULTS)))
    assert len(commands) > 20
    for script, options in commands:
        module = importlib.import_module(script)
        context = module.main.make_context(script, shlex.split(options))
        chosen = [context.params["ways"]] if "--ways" in options else []
        assert set(chosen) <= set(getattr(module, "WAYS", ())), f"bench/{script}.py{options}"


def test_notes_stand_below_the_table_that_they_are_about(tmp_path):
    write(tmp_path, "startup", {"python": {"seconds": 0.01}})
    write(tmp_path, "merging", {"peft": {"seconds": 30.0}})
    (tmp_path / "notes.md").write_text("# Notes\n\n## startup\n\nSlow, because of imports.\n\n## training\n\nGone.\n")
    text = table.tables(tmp_path)
    assert text.index("## Merging") < text.index("## Startup") < text.index("Slow, because")
    assert "Gone." not in text


def test_a_second_file_of_a_benchmark_follows_the_first_with_notes_of_its_own(tmp_path):
    write(tmp_path, "merging", {"peft": {"seconds": 30.0}})
    write(
        tmp_path, "evaluation", {"ours-1": {"seconds": 20.0}, "reference-1": {"seconds": 100.0}}, stem="evaluation-bf16"
    )
    write(tmp_path, "evaluation", {"ours-1": {"seconds": 50.0}, "reference-1": {"seconds": 100.0}})
    (tmp_path / "notes.md").write_text("# Notes\n\n## evaluation-bf16\n\nOne round.\n")
    text = table.tables(tmp_path)
    places = [text.index(words) for words in ("## Evaluation\n", "## Evaluation-bf16\n", "One round.", "## Merging\n")]
    assert places == sorted(places)
    assert [line.split(" | ")[2] for line in text.splitlines() if line.startswith("| ours-1 ")] == ["2.00", "5.00"]


@pytest.mark.parametrize("name", list(table.SCRIPTS))
def test_the_script_of_every_table_is_there(name):
    assert (ROOT / "bench" / table.SCRIPTS[name]).is_file()


def test_an_evaluation_is_compared_with_the_reference_for_as_many_adapters(tmp_path):
    seconds = {"reference-1": 100.0, "ours-1": 20.0, "reference-4": 400.0, "ours-4": 40.0}
    write(tmp_path, "evaluation", {way: {"seconds": value} for way, value in seconds.items()})
    text = table.tables(tmp_path)
    assert row(text, "ours-1").split(" | ")[2] == "5.00" and row(text, "ours-4").split(" | ")[2] == "10.00"


def test_help_of_every_benchmark_answers_and_none_looks_beside_the_checkout():
    scripts = [path for path in sorted((ROOT / "bench").glob("*.py")) if "@click.command" in files.read_text(path)]
    assert len(scripts) >= 10
    for path in scripts:
        done = CliRunner().invoke(importlib.import_module(path.stem).main, ["--help"])
        assert done.exit_code == 0 and f"bench/{path.name}" in done.output.split("Example")[1], path.name
    texts = {
        path.name: files.read_text(path) for folder in ("bench", "tests") for path in (ROOT / folder).rglob("*.py")
    }
    beside = "ROOT." + "parent"
    assert [name for name, text in texts.items() if re.search(rf"{beside}\b(?!s)", text)] == []
