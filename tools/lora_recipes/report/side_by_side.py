"""Saved answers of several systems, row by row: read, matched, and the rows worth reading picked."""

import functools
import json
import math
import random
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lora_recipes.config.runfile import RunFile
from lora_recipes.report import pages
from lora_recipes.results import result_files

import click

SEED = 42
"""Of the random rows: the same answers give the same page."""


@dataclass
class System:
    """One system's answers in row order, its `evaluation` section, and its F1 an answer where scored."""

    name: str
    answers: list[dict[str, Any]]
    evaluation: dict[str, Any] = field(default_factory=dict)

    @functools.cached_property
    def f1(self) -> list[float]:
        """BERTScore F1 of each answer; empty when the answers were not scored."""
        found = self.evaluation.get("scores", {}).get("f1") or []
        return [float(value) for value in found] if len(found) == len(self.answers) else []


def load(runs: list[RunFile], split: str, base: bool) -> list[System]:
    """The base, where its answers exist or `base` asks for it, and the system of each run file.

    Raises click.ClickException when answers are missing or damaged, or systems answered other rows.
    """
    places = [(run, False) for run in runs]
    if base or answers_path(runs[0], split, base=True).is_file():
        places.insert(0, (runs[0], True))
    systems = [_system(run, split, base=is_base) for run, is_base in places]
    for other in systems[1:]:
        _require_same_rows(systems[0], other, split)
        _require_same_settings(systems[0], other)
    return systems


def answers_path(run: RunFile, split: str, base: bool = False) -> Path:
    """Where tools/eval.py keeps the answers to a split."""
    return result_files.folder(run, base) / f"answers-{split}.jsonl"


def _system(run: RunFile, split: str, base: bool) -> System:
    path = answers_path(run, split, base)
    if not path.is_file():
        what = "the base model" if base else run.variant
        command = f"tools/eval.py {run.name}{' --base' if base else ''}{f' --split {split}' if split != 'test' else ''}"
        raise click.ClickException(f"{path}: no answers of {what} yet; run `{command}` first.")
    result_path = path.with_name("result.json")
    result = result_files.read(result_path) if result_path.is_file() else {}
    evaluation = result.get("evaluation" if split == "test" else f"evaluation-{split}") or {}
    answers = read_answers(path)
    # Beyond a --limit, answers of an earlier evaluation stay in the file.
    scored = [answer for answer in answers if answer["row"] < evaluation.get("rows", math.inf)]
    return System("base" if base else run.variant, scored, evaluation)


def read_answers(path: Path) -> list[dict[str, Any]]:
    """The lines of an answers file, in row order.

    Raises click.ClickException, naming the line, for one that is damaged, and for a file without any.
    """
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise click.ClickException(f"{path}: cannot be read ({error}); run tools/eval.py again.") from None
    answers = {}
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            answer = json.loads(line)
            answers[int(answer["row"])] = {
                **answer,
                **{name: pages.clean(str(answer[name])) for name in ("question", "reference", "answer")},
            }
        except (ValueError, KeyError, TypeError):
            raise click.ClickException(
                f"{path}, line {number}: not an answer of tools/eval.py; run it again, it keeps the whole lines."
            ) from None
    if not answers:
        raise click.ClickException(f"{path}: holds no answers; run tools/eval.py again.")
    return [answers[row] for row in sorted(answers)]


def _require_same_rows(first: System, other: System, split: str) -> None:
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


def _require_same_settings(first: System, other: System) -> None:
    """Answers of another length limit and scores of another model do not compare."""
    for part, key, option in (
        ("settings", "max_new_tokens", "--max-new-tokens"),
        ("scoring", "bert_score_hash", "--score-model"),
    ):
        one, two = ((system.evaluation.get(part) or {}).get(key) for system in (first, other))
        if one != two and None not in (one, two):
            raise click.ClickException(
                f"{first.name} and {other.name} were evaluated with different settings ({key}: {one} and {two}); "
                f"run tools/eval.py for both with the same {option}."
            )


def gains(systems: list[System]) -> list[float]:
    """F1 of the first variant less F1 of the base, a row; its F1 alone without a base; empty if unscored."""
    variants = [system for system in systems if system.name != "base"]
    base = [system for system in systems if system.name == "base"]
    first = variants[0].f1
    if not base:
        return first
    return [new - old for new, old in zip(first, base[0].f1, strict=True)] if first and base[0].f1 else []


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
