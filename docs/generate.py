#!/usr/bin/env python3
"""The generated parts of the documentation: docs/commands.md, results/bench/README.md, blocks of README.md."""

import importlib
import json
import sys
from pathlib import Path
from types import ModuleType

from lora_recipes import ROOT
from lora_recipes.rendering import ingredients
from lora_recipes.support import files

import click

sys.path.append(str(ROOT / "bench"))

BENCH = ROOT / "results" / "bench"
TOOLS = ("render", "check", "data", "train", "merge", "eval", "benchmark", "compare", "report")


def _table() -> ModuleType:
    return importlib.import_module("table")


def pages() -> dict[Path, str]:
    """Path -> text of every file that has a generated part."""
    return {
        ROOT / "README.md": _readme(files.read_text(ROOT / "README.md")),
        ROOT / "docs" / "commands.md": _commands(),
        BENCH / "README.md": _bench(),
    }


def _readme(text: str) -> str:
    for name, lines in (("demo", _demo()), ("recipes", _recipes()), ("speed", _speed())):
        before, _, rest = text.partition(f"<!-- {name} -->\n")
        text = "\n".join([f"{before}<!-- {name} -->", *lines, f"<!-- /{name} -->\n"])
        text += rest.partition(f"<!-- /{name} -->\n")[2]
    return text


def _demo() -> list[str]:
    """The scores of the published run, as `make demo` ends with them."""
    lines = []
    for name in ("base", "lora", "peft"):
        path = ROOT / "results" / "smollm2-african-history" / f"{name}.json"
        section = json.loads(files.read_text(path))["evaluation"]
        f1, difference = section["metrics"]["bertscore_f1"], section["differences"].get("base")
        line = f"{name:<6} BERTScore F1 {f1['mean']:.4f} [{f1['low']:.4f}, {f1['high']:.4f}]"
        if difference:
            mean, low, high = (f"{difference[part]:+.4f}" for part in ("mean", "low", "high"))
            line += f", difference to base {mean} [{low}, {high}]"
        lines.append(line)
    return ["```", *lines, "```"]


def _recipes() -> list[str]:
    lines = ["| recipe | trains | runs on |", "|---|---|---|"]
    for name in ingredients.recipe_names():
        facts = ingredients.load_recipe(name).facts
        lines.append(f"| [{name}](recipes/{name}) | {facts['title']} | {facts['hardware']} |")
    return lines


def _medians(name: str, key: str) -> dict[str, float]:
    ways = json.loads(files.read_text(BENCH / f"{name}.json"))["ways"]
    return {way: found["median"][key] for way, found in ways.items() if key in found["median"]}


def _speed() -> list[str]:
    """Ratios of the medians in results/bench."""
    training = _medians("training", "steady_tokens_per_second")
    reference, best = training["reference"], max(training[peer] for peer in _table().PEERS & training.keys())
    plain, compiled = training["plain"], training["plain-compiled"]
    asked = _medians("evaluation", "questions_per_second")
    one, four = (asked[f"ours-{n}"] / asked[f"reference-{n}"] for n in (1, 4))
    tasks = _medians("benchmark", "seconds")
    seconds, memory = _medians("merging", "seconds"), _medians("merging", "peak_memory_mb")
    return [
        f"- Training: {plain / reference:.1f} times as fast as the way of the two projects it grew out of, "
        f"{compiled / reference:.1f} compiled; {plain / best:.2f} and {compiled / best:.2f} times the fastest of TRL, "
        "Axolotl and LLaMA-Factory at the same loss.",
        f"- Evaluation: {one:.1f} times as fast as answering one question at a time, {four:.1f} for four adapters, "
        f"with the same answers; lm-eval tasks of four adapters {tasks['lm-eval'] / tasks['ours']:.1f} times.",
        f"- Merging 1.7 B parameters, verified: {seconds['ours']:.0f} s and {memory['ours'] / 1000:.1f} GB; "
        f"PEFT's merge, unverified: {seconds['peft']:.0f} s and {memory['peft'] / 1000:.1f} GB.",
    ]


def _commands() -> str:
    parts = ["# Commands\n\nThe `--help` of every command, written by `docs/generate.py`.\n"]
    for name in TOOLS:
        command = importlib.import_module(name).main
        parts.append(_help(command, f"tools/{name}.py"))
        subs = command.commands.items() if isinstance(command, click.Group) else ()
        parts += [_help(sub, f"tools/{name}.py {verb}") for verb, sub in subs]
    return "\n".join(parts)


def _help(command: click.Command, name: str) -> str:
    with click.Context(command, info_name=name, max_content_width=100, terminal_width=100) as context:
        text = command.get_help(context)
    return f"## `{name}`\n\n```\n{text}\n```\n"


def _bench() -> str:
    return (
        "# Benchmarks\n\nMade by `docs/generate.py` from the files beside it; "
        f"[how they are measured](../../docs/benchmarks.md).\n\n{_table().tables(BENCH)}"
    )


@click.command()
@click.option("--check", is_flag=True, help="exit 1 when a page is out of date")
def main(check: bool) -> None:
    """Write the generated parts of the documentation anew.

    \b
    Example:
      docs/generate.py --check
    """
    for path, text in pages().items():
        if check and (not path.exists() or files.read_text(path) != text):
            raise click.ClickException(f"{files.relative(path)} is out of date; run docs/generate.py.")
        if not check:
            files.write_text(path, text)


if __name__ == "__main__":
    main()
