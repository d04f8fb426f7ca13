"""The documentation against the tools: every command has help that follows the house rules, and the README knows it."""

import importlib
import inspect
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from lora_recipes import ROOT

import click
import pytest

HEAVY = ("torch", "transformers", "peft", "axolotl", "lm_eval", "bert_score", "matplotlib", "datasets", "accelerate")
PROGRAMS = sorted(path.stem for path in (ROOT / "tools").glob("*.py"))
TOOLS = [name for name in PROGRAMS if "@click." in (ROOT / "tools" / f"{name}.py").read_text(encoding="utf-8")]
SCRIPTS = sorted((ROOT / "bench").glob("*.py"))
BENCHMARKS = [f"bench/{path.name}" for path in SCRIPTS if "@click.command" in path.read_text(encoding="utf-8")]


def _met_as(name: str) -> str:
    """What a user types: install.py and demo.py are met through make."""
    return {"install": "make setup", "demo": "make demo"}.get(name, f"tools/{name}.py")


def _commands(name: str) -> Iterator[tuple[str, click.Command]]:
    """The command of a tool, or the commands of its group."""
    command = importlib.import_module(name).main
    if isinstance(command, click.Group):
        yield from ((f"{name} {verb}", sub) for verb, sub in command.commands.items())
    else:
        yield name, command


def test_the_tools_are_found() -> None:
    assert {"render", "check", "data", "train", "merge", "eval", "benchmark", "compare", "report", "demo"} <= set(TOOLS)


@pytest.mark.parametrize("name", PROGRAMS)
def test_help_answers_without_a_heavy_import(name: str) -> None:
    code = (
        "import atexit, runpy, sys; tool = sys.argv[1]; sys.argv[:] = [tool, '--help']; "
        f"atexit.register(lambda: print('loaded:', *sorted(set(sys.modules) & {set(HEAVY)}), file=sys.stderr)); "
        "runpy.run_path(tool, run_name='__main__')"
    )
    path = str(ROOT / "tools" / f"{name}.py")
    done = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(("Usage:", "usage:"))
    assert done.stderr == "loaded:\n"


@pytest.mark.parametrize("name", [*(f"tools/{name}.py" for name in PROGRAMS), *BENCHMARKS])
def test_a_program_can_be_started_by_its_path(name: str) -> None:
    path = ROOT / name
    assert path.read_text().startswith("#!/usr/bin/env python3\n")
    assert path.stat().st_mode & 0o111 == 0o111


@pytest.mark.parametrize("name", TOOLS)
def test_each_command_has_help_with_an_example_that_names_it(name: str) -> None:
    for label, command in _commands(name):
        assert command.help, label
        text = inspect.cleandoc(command.help)
        assert "\b\nExample" in text, f"{label}: no example kept in its lines by \\b"
        assert _met_as(name) in text.split("Example")[1], label


@pytest.mark.parametrize("name", TOOLS)
def test_each_option_has_a_short_help_without_a_full_stop(name: str) -> None:
    for label, command in _commands(name):
        for option in (parameter for parameter in command.params if isinstance(parameter, click.Option)):
            where = f"{label} {option.opts[0]}"
            assert option.help, where
            assert not option.help.endswith("."), where
            assert len(option.help) <= 45, f"{where}: {option.help!r}"
            assert all(re.fullmatch(r"-\w|--[a-z0-9-]+", name) for name in option.opts), f"{where}: not kebab-case"


def _readme() -> str:
    return (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", PROGRAMS)
def test_the_readme_mentions_each_tool(name: str) -> None:
    assert _met_as(name) in _readme()


def test_each_path_that_the_readme_names_exists() -> None:
    """In backticks or behind a link; placeholders (<recipe>, *, …) and what a run makes are no paths of ours."""
    top = {path.name for path in ROOT.iterdir()} - {".venv", ".cache", "outputs"}
    words = [word for quoted in re.findall(r"`([^`\n]+)`", _readme()) for word in quoted.split()]
    words += [target for target in re.findall(r"\]\(([^)#\s]+)", _readme()) if "://" not in target]
    words += re.findall(r"(?<![\w/.-])((?:recipes|templates|deepspeed_configs|tools|data)/[\w./+-]+)", _readme())
    paths = {word.strip(",;:").rstrip(".") for word in words if not re.search(r"[<>*{}$…|=]|\.\.\.", word)}
    ours = {path for path in paths if path.split("/")[0] in top and ("/" in path or "." in path)}
    assert len(ours) > 5, "the README names hardly any path: the search is broken"
    assert not [path for path in sorted(ours) if not Path(ROOT / path).exists()]


def test_each_make_target_is_in_its_help_and_the_readme_names_only_real_ones() -> None:
    makefile = (ROOT / "Makefile").read_text()
    targets = set(re.findall(r"^([a-z-]+):", makefile, re.M)) - {"help"}
    help_text = subprocess.run(["make", "-s"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert set(re.findall(r"make ([a-z-]+)", help_text)) == targets
    assert set(re.findall(r"`make ([a-z-]+)", _readme())) <= targets
