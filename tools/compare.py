#!/usr/bin/env python3
"""Compare answers: reference, base and variants side by side, from what tools/eval.py saved."""

from pathlib import Path
from typing import Any

from lora_recipes.config import runfile
from lora_recipes.report import pages, side_by_side
from lora_recipes.report.side_by_side import Answered
from lora_recipes.results import tables
from lora_recipes.support import filenames, files, terminal

import click


def _cells(found: list[Answered], row: int) -> list[dict[str, Any]]:
    """The reference and each system's answer to one row."""
    reference = found[0].answers[row]["reference"]
    cells = [{"system": "reference", "text": reference, "f1": None, "note": "", "reference": True}]
    for system in found:
        answer = system.answers[row]
        f1 = f"{system.f1[row]:.3f}" if system.f1 else None
        text, note = answer["answer"].strip(), ""
        if not text:
            note = "an empty answer"
        elif not answer["finished"]:
            note = f"cut off after {answer['new_tokens']} tokens"
        cells.append({"system": system.name, "text": text, "f1": f1, "note": note, "reference": False})
    return cells


def _rows(found: list[Answered], gain: list[float]) -> list[dict[str, Any]]:
    signed = found[0].system.is_base
    return [
        {
            "number": answer["row"] + 1,
            "question": answer["question"].strip(),
            "gain": format(gain[row], "+.3f" if signed else ".3f") if gain else "",
            "cells": _cells(found, row),
        }
        for row, answer in enumerate(found[0].answers)
    ]


def _summary(found: list[Answered]) -> dict[str, Any]:
    """One line a system: score, difference to the base, and how its answers ended."""
    lines = []
    for system in found:
        count = len(system.answers)
        tokens = sum(answer["new_tokens"] for answer in system.answers) / count
        empty = sum(not answer["answer"].strip() for answer in system.answers)
        cut = sum(not answer["finished"] for answer in system.answers)
        f1 = f"{sum(system.f1) / count:.4f}" if system.f1 else "not scored"
        difference = (system.evaluation.get("differences") or {}).get("base")
        lines.append([system.name, f1, tables.difference(difference), f"{tokens:.1f}", str(empty), str(cut)])
    return {
        "columns": ["system", "BERTScore F1", "difference to base", "mean tokens", "empty", "cut off"],
        "rows": lines,
        "note": tables.note(len(found[0].answers)),
    }


def _groups(found: list[Answered], rows: list[dict[str, Any]], gain: list[float], count: int) -> list[dict[str, Any]]:
    variant = next(one.name for one in found if not one.system.is_base)
    by = f"F1 gain of {variant} over base" if found[0].system.is_base else f"F1 of {variant}"
    titles = {"best": f"Largest {by}", "worst": f"Smallest {by}", "random": "Random rows"}
    picked = side_by_side.pick(gain, len(rows), count)
    return [{"title": titles[name], "rows": [rows[row] for row in chosen]} for name, chosen in picked.items() if chosen]


def _context(runs: list[runfile.RunFile], found: list[Answered], split: str, count: int) -> dict[str, Any]:
    gain = side_by_side.gains(found)
    rows = _rows(found, gain)
    names = ", ".join(system.name for system in found)
    notes = "" if gain else " The answers are not scored, so no best and worst rows are picked; run tools/eval.py."
    for system in found:
        if system.evaluation.get("prompt_parity") is False:
            notes += f" {system.name} was asked with another prompt than it was trained on."
    return {
        "title": f"{runs[0].recipe}: answers side by side",
        "intro": f"{len(rows)} rows of {split}, answered by {names}; random rows with seed {side_by_side.SEED}.{notes}",
        "summary": _summary(found),
        "groups": _groups(found, rows, gain, count),
        "all_rows": rows,
    }


def _require_one_recipe(runs: list[runfile.RunFile]) -> None:
    folders = [run.output_dir.resolve() for run in runs]
    if len(set(folders)) < len(folders):
        raise click.UsageError("the same run is given twice; give each once.")
    if len({folder.parent for folder in folders}) > 1:
        raise click.UsageError("the runs belong to different recipes; compare the variants of one recipe.")


@click.command(cls=terminal.Tool)
@click.argument("sources", nargs=-1, required=True, metavar="RUN...")
@click.option("--base", is_flag=True, help="insist on the base model's answers")
@click.option("--split", default="test", show_default=True, callback=filenames.option, help="split that was answered")
@click.option("--rows", "count", default=5, show_default=True, type=click.IntRange(1), help="rows of each kind")
@click.option("-o", "--output", type=click.Path(dir_okay=False, path_type=Path), help="HTML file; .md goes beside it")
def main(sources: tuple[str, ...], base: bool, split: str, count: int, output: Path | None) -> None:
    """Show reference, base and variants side by side.

    Best and worst rows are those of the first run's gain over the base. Nothing is generated anew.

    \b
    Example:
      tools/compare.py recipes/smollm2-african-history/lora.yaml -o page.html
    """
    runs = [runfile.load(source) for source in sources]
    _require_one_recipe(runs)
    output = output or runs[0].output_dir.parent / "compare.html"
    if output.suffix == ".md":
        raise click.UsageError("-o names the HTML file; the Markdown goes beside it with the suffix .md.")
    context = _context(runs, side_by_side.load(runs, split, base), split, count)
    pages_made = {
        output: pages.render("compare.html.j2", **context),
        output.with_suffix(".md"): pages.render("compare.md.j2", page=output.name, **context),
    }
    for path, text in pages_made.items():
        files.write_text(path, text)
        click.echo(files.relative(path))


if __name__ == "__main__":
    main()
