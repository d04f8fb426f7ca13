#!/usr/bin/env python3
"""Report what was measured: tables, plots and one page, out of result files and nothing else."""

import base64
from pathlib import Path
from typing import Any

from lora_recipes import ROOT
from lora_recipes.report import inputs, pages, plots, recipe_tables
from lora_recipes.results import tables
from lora_recipes.results.systems import System
from lora_recipes.support import files, terminal

import click

RESULTS, OUTPUTS = ROOT / "results", ROOT / "outputs"
_ALT = {
    "scores.png": "BERTScore F1 of each system with its 95 % interval",
    "losses.png": "Train and validation loss against the optimizer step",
}


def _folder(given: Path | None, publish: bool) -> Path:
    """What to report on: results/ once something is published there, else what this checkout measured."""
    if given:
        return given
    return RESULTS if not publish and inputs.published_files(RESULTS) else OUTPUTS


def _measured(folder: Path) -> list[System]:
    if not folder.is_dir():
        raise click.UsageError(f"no folder {files.relative(folder)}; measure first with `tools/eval.py RUN`.")
    found = inputs.load(folder)
    if not found and folder.resolve() != RESULTS:
        raise click.ClickException(
            f"{files.relative(folder)}: no result files; measure with `tools/eval.py RUN`, or give another folder."
        )
    return found


def _context(measured: list[System], recipes: list[str], target: Path) -> dict[str, Any]:
    sections = []
    for recipe in recipes:
        members = [system for system in measured if system.recipe == recipe]
        sections.append({**recipe_tables.recipe_section(recipe, members), "answers": _answers_page(members, target)})
    intro = "Written by tools/report.py from result files; change those, not this page."
    if any(row["source"] for section in sections for table in section["tables"] for row in table["rows"]):
        intro += " Rows in italics were published by others about their own runs and are no results of this project."
    return {
        "title": "Results",
        "intro": intro,
        "difference_note": tables.DIFFERENCE_NOTE,
        "sections": sections,
    }


def _answers_page(members: list[System], target: Path) -> str | None:
    """The page of tools/compare.py beside the variants' folders, where it lies below the report."""
    for page in (system.path.parents[1] / "compare.html" for system in members):
        if page.is_file() and page.resolve().is_relative_to(target.resolve()):
            return page.resolve().relative_to(target.resolve()).as_posix()
    return None


def _write(measured: list[System], recipes: list[str], target: Path) -> list[Path]:
    """The plots first, then the pages that show them."""
    images = {"scores.png": plots.scores(measured, recipes), "losses.png": plots.losses(measured)}
    shown = []
    for name, data in images.items():
        if data:
            files.write_bytes(target / name, data)
            shown.append({"file": name, "alt": _ALT[name], "base64": base64.b64encode(data).decode()})
    context = _context(measured, recipes, target)
    files.write_text(target / "README.md", pages.render("report.md.j2", plots=shown, **context))
    files.write_text(target / "index.html", pages.render("report.html.j2", plots=shown, **context))
    return [target / name for name in ("README.md", "index.html", *(plot["file"] for plot in shown))]


@click.command(cls=terminal.Tool)
@click.argument("folder", required=False, type=click.Path(path_type=Path))
@click.option("-o", "--output", type=click.Path(file_okay=False, path_type=Path), help="write the report here")
@click.option("--publish", is_flag=True, help="copy results to results/, report there")
def main(folder: Path | None, output: Path | None, publish: bool) -> None:
    """Write README.md, index.html and plots from the result files below a folder.

    Without FOLDER it reads results/ where something is published there, else outputs/.

    \b
    Example:
      tools/report.py outputs -o /tmp/report
    """
    source = _folder(folder, publish)
    measured = _measured(source)
    target = output or (RESULTS if publish else source)
    if publish:
        for system in measured:
            click.echo(files.relative(inputs.publish(system, target)))
        measured = inputs.load(target)
    recipes = {system.recipe for system in measured}
    if RESULTS in (source.resolve(), target.resolve()):
        recipes |= set(inputs.published_recipes())
    for path in _write(measured, sorted(recipes), target):
        click.echo(files.relative(path))


if __name__ == "__main__":
    main()
