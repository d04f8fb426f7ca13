"""The documentation against the tools: every command has help that follows the house rules, and the README knows it."""

import importlib
import inspect
import json
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lora_recipes import ROOT
from lora_recipes.axolotl import command as axolotl_command
from lora_recipes.evaluation import tasks
from lora_recipes.results import intervals

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


PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])
WRITTEN = [page for page in PAGES if page.name != "commands.md"]


def _name(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("name", PROGRAMS)
def test_the_readme_mentions_each_tool(name: str) -> None:
    assert _met_as(name) in (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("page", PAGES, ids=_name)
def test_each_path_that_a_page_names_exists(page: Path) -> None:
    """In backticks, in commands or behind a link; placeholders and what a run makes are no paths of ours."""
    text = page.read_text(encoding="utf-8")
    made = set(re.findall(r"^`([^`]+)`:$", text, re.M))  # what a worked example has its reader write
    top = {path.name for path in ROOT.iterdir()} - {".venv", ".cache", "outputs"}
    links = [target for target in re.findall(r"\]\(([^)#\s]+)", text) if "://" not in target]
    assert [target for target in links if not (page.parent / target).exists()] == []
    words = [word for quoted in re.findall(r"`([^`\n]+)`", text) for word in quoted.split()]
    words += re.findall(r"(?<![\w/.-])((?:recipes|templates|deepspeed_configs|tools|data|bench|tests)/[\w./+-]+)", text)
    paths = {
        word.strip(",;:()").rstrip(".") for word in words if not re.search(r"[<>*{}$…|=]|\.\.\.|NAME|mine|/V\.", word)
    }
    ours = {path for path in paths - made if path.split("/")[0] in top and ("/" in path or "." in path)}
    assert [path for path in sorted(ours) if not (ROOT / path).exists()] == []


def _shell_lines() -> Iterator[tuple[str, str]]:
    """Each command of a page's shell blocks, without its comment; of a pipe each part."""
    for page in WRITTEN:
        for block in re.findall(r"```sh\n(.*?)```", page.read_text(encoding="utf-8"), re.S):
            for line in block.strip().splitlines():
                for part in re.split(r" \| | && ", line):
                    yield page.name, part


COMMANDS = list(_shell_lines())


def test_the_pages_show_commands() -> None:
    assert len(COMMANDS) > 25


@pytest.mark.parametrize(("page", "line"), COMMANDS, ids=lambda value: str(value)[:60])
def test_each_command_that_a_page_shows_is_taken(page: str, line: str) -> None:
    """Its program is there and knows the options; values that it reads from the disk are not looked at."""
    program, *args = shlex.split(line, comments=True)
    if program == "make":
        assert set(args) <= _targets(), line
    elif program == "axolotl":
        assert args[0] == "train" and axolotl_command.train_call(args), line
    elif program in (".", "cd", "git", "pip", "torchrun"):
        assert program != "torchrun" or (ROOT / args[1]).is_file(), line
    else:
        assert (ROOT / program).is_file(), line
        _parse(importlib.import_module(Path(program).stem).main, args)


def _parse(main: click.Command, args: list[str]) -> None:
    """Raises click.UsageError for an option or a sub-command that is none."""
    if isinstance(main, click.Group):
        main, args = main.commands[args[0]], args[1:]
    main.make_parser(click.Context(main)).parse_args(args)


def _targets() -> set[str]:
    return set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M)) - {"help"}


def test_each_make_target_is_in_its_help_and_the_pages_name_only_real_ones() -> None:
    help_text = subprocess.run(["make", "-s"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert set(re.findall(r"make ([a-z-]+)", help_text)) == _targets()
    for page in WRITTEN:
        assert set(re.findall(r"`make ([a-z-]+)", page.read_text(encoding="utf-8"))) <= _targets(), page.name


def test_the_generated_parts_are_what_generates_them() -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "docs" / "generate.py"), "--check"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 140


def _json(path: str) -> Any:
    return json.loads((ROOT / path).read_text(encoding="utf-8"))


def _page(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def test_figures_in_the_pages_are_those_of_files() -> None:
    cut = _json("results/smollm2-african-history/base.json")["evaluation"]["metrics"]["unfinished_answers"]
    assert f"cut off in {cut} of 100 answers" in _page("README.md")
    published = {row["system"]: row for row in _json("results/published.json")["rows"] if "phi4" in row["recipe"]}
    names = ("axolotl lora", "axolotl lora ds2", "base")
    one, two, base = (f"{published[name]['metrics']['bertscore_f1']:.4f}" for name in names)
    assert f"BERTScore {one} and {two} of the Axolotl runs against {base} of the base" in _page("docs/defects.md")
    assert intervals.LEAST == 10 and "over fewer than ten questions none is marked" in _page("docs/evaluation.md")
    questions = _page("data/african_history_mc/test.jsonl").splitlines()
    assert f"`african_history_mc` ({len(questions)} questions" in _page("docs/evaluation.md")
    assert f"`mmlu_dev` ({len(tasks.mmlu_dev().read_text().splitlines())} of MMLU's" in _page("docs/evaluation.md")
