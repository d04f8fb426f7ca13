"""Saved answers of several systems, row by row: read, matched, and the rows worth reading picked."""

import math
import random
from dataclasses import dataclass
from typing import Any

from lora_recipes.config.runfile import RunFile
from lora_recipes.report import pages
from lora_recipes.results import answers, systems
from lora_recipes.results.systems import System

import click

SEED = 42
"""Of the random rows: the same answers give the same page."""


@dataclass(frozen=True)
class Answered:
    """A system's answers in row order, its `evaluation` section, and its F1 an answer; empty when not scored."""

    system: System
    answers: list[dict[str, Any]]
    evaluation: dict[str, Any]
    f1: list[float]

    @property
    def name(self) -> str:
        return self.system.name


def load(runs: list[RunFile], split: str, base: bool) -> list[Answered]:
    """The base, where its answers exist or `base` asks for it, and the system of each run file.

    Raises click.ClickException when answers are missing or damaged, or systems answered other rows.
    """
    chosen = [systems.of_run(run, run.output_dir) for run in runs]
    bases = {system.path: system for system in map(_base_of, chosen)}
    bare, *others = bases.values()
    if base and others:
        raise click.UsageError("the runs have different base models; compare those of one with --base.")
    if base or (not others and bare.answers_path(split).is_file()):
        chosen.insert(0, bare)
    found = [_answered(system, split) for system in chosen]
    for other in found[1:]:
        _require_same_rows(found[0], other, split)
        _require_same_settings(found[0], other)
    return found


def _base_of(system: System) -> System:
    """The base model that a system was measured with; where no result has its identity, the only one there may be."""
    return systems.of_base(system.run, system.model)


def _answered(system: System, split: str) -> Answered:
    evaluation = system.section(systems.evaluation_kind(split))
    # Beyond a --limit, answers of an earlier evaluation stay in the file.
    rows = evaluation.get("rows") or math.inf
    found = [answer for answer in _read(system, split) if answer["row"] < rows]
    f1 = [float(value) for value in (evaluation.get("scores") or {}).get("f1") or []]
    return Answered(system, found, evaluation, f1 if len(f1) == len(found) else [])


def _read(system: System, split: str) -> list[dict[str, Any]]:
    """A system's answers in row order, with texts that any page can hold."""
    path = system.answers_path(split)
    if not path.exists():
        is_base = system.is_base
        command = f"tools/eval.py {system.run.name}{' --base' if is_base else ''}"
        command += f" --split {split}" if split != "test" else ""
        what = "the base model" if is_base else system.name
        raise click.ClickException(f"{path}: no answers of {what} yet; run `{command}` first.")
    found, damaged = answers.read(path)
    for line, mistake in damaged.items():
        raise click.ClickException(
            f"{path}, line {line}: not an answer of tools/eval.py ({mistake}); run it again, it keeps the whole lines."
        )
    if not found:
        raise click.ClickException(f"{path}: holds no answers; run tools/eval.py again.")
    shown = ("question", "reference", "answer")
    by_row = {answer["row"]: answer | {name: pages.clean(str(answer[name])) for name in shown} for answer in found}
    return [by_row[row] for row in sorted(by_row)]


def _require_same_rows(first: Answered, other: Answered, split: str) -> None:
    remedy = "run tools/eval.py for both with the same data, --split and --limit."
    count, others = len(first.answers), len(other.answers)
    if count != others:
        raise click.ClickException(f"{first.name} answered {count} rows of {split} and {other.name} {others}; {remedy}")
    for number, (one, two) in enumerate(zip(first.answers, other.answers, strict=True), 1):
        for what in ("row", "question", "reference"):
            if one[what] != two[what]:
                raise click.ClickException(
                    f"{first.name} and {other.name} answered different rows of {split}: "
                    f"row {number} differs in its {what}; {remedy}"
                )


def _require_same_settings(first: Answered, other: Answered) -> None:
    """Answers of another length limit and scores of another model do not compare."""
    for part, key, option in (
        ("settings", "max_new_tokens", "--max-new-tokens"),
        ("scoring", "bert_score_hash", "--score-model"),
    ):
        one, two = ((answered.evaluation.get(part) or {}).get(key) for answered in (first, other))
        if one != two and None not in (one, two):
            raise click.ClickException(
                f"{first.name} and {other.name} were evaluated with different settings ({key}: {one} and {two}); "
                f"run tools/eval.py for both with the same {option}."
            )


def gains(found: list[Answered]) -> list[float]:
    """F1 of the first variant less F1 of the base, a row; its F1 alone without a base; empty if unscored."""
    first = next(answered.f1 for answered in found if not answered.system.is_base)
    if not found[0].system.is_base:
        return first
    return [new - old for new, old in zip(first, found[0].f1, strict=True)] if first and found[0].f1 else []


def pick(gain: list[float], rows: int, count: int) -> dict[str, list[int]]:
    """Row indices: `count` each of the best, the worst and the rest at random, none of them twice."""
    order = sorted(range(rows), key=lambda row: (-gain[row], row)) if gain else []
    # With few rows best and worst would share some: each keeps its own half.
    each = min(count, (len(order) + 1) // 2)
    best = order[:each]
    worst = order[each:][-each:][::-1] if each else []
    rest = [row for row in range(rows) if row not in {*best, *worst}]
    chosen = random.Random(SEED).sample(rest, min(count, len(rest)))
    return {"best": best, "worst": worst, "random": sorted(chosen)}
