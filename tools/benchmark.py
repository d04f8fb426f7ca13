#!/usr/bin/env python3
"""Benchmark: the base model and its variants on lm-eval's tasks."""

import os
import sys
from pathlib import Path
from typing import Any

from lora_recipes.config import runfile
from lora_recipes.evaluation import tasks
from lora_recipes.results import result_files, tables, tracking
from lora_recipes.results.systems import System
from lora_recipes.support import files, libraries, terminal

import click


def _table(sections: dict[System, dict[str, Any]]) -> str:
    """A row a metric and system; the systems of a metric below each other."""
    several = len({system.recipe for system in sections}) > 1
    rows = [("task", "system", "score", "difference to base")]
    for name in next(iter(sections.values()))["metrics"]:
        for system, section in sections.items():
            to_base = section["differences"].get("base", {}).get(name)
            label = system.label if several else system.name
            rows.append((name, label, tables.interval(section["metrics"][name]), tables.difference(to_base)))
    asked = [value["n"] for section in sections.values() for value in section["metrics"].values()]
    return f"{tables.aligned(rows)}\n{tables.note(min(asked))}"


@click.command(cls=terminal.Tool)
@click.argument("sources", nargs=-1, required=True, metavar="RUN...")
@click.option("--base", is_flag=True, help="measure the base model too")
@click.option("--tasks", "named", default=",".join(tasks.NAMES), metavar="A,B", help="any that lm-eval knows")
@click.option(
    "--include-path",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="your own task files for lm-eval",
)
@click.option("--limit", type=click.IntRange(1), metavar="N", help="the first N questions of each task")
@click.option("--batch-size", type=click.IntRange(1), help="default 16, on a GPU 32")
@click.option(
    "--adapter", type=click.Path(exists=True, file_okay=False, path_type=Path), help="instead of the run's own"
)
def main(
    sources: tuple[str, ...],
    base: bool,
    named: str,
    include_path: Path | None,
    limit: int | None,
    batch_size: int | None,
    adapter: Path | None,
) -> None:
    """Score tasks with lm-eval.

    Without --tasks: african_history_mc (140 questions of our own) and mmlu_dev (281 of MMLU's), which
    are here, and tinyMMLU and tinyTruthfulQA, which need the network and the package tinyBenchmarks.

    Each score has lm-eval's standard error and a 95 % interval, Wilson's of an accuracy; each difference
    of accuracies a paired one. A task whose data cannot be had here is skipped, with the
    reason. A killed benchmark goes on where it was, task by task.

    \b
    Example:
      tools/benchmark.py recipes/smollm2-african-history/lora.yaml --base --limit 20
    """
    runs = runfile.load_several(sources, adapter)
    for run in runs:
        tracking.require_login(run)
    watch = result_files.Stopwatch()
    if not sys.stderr.isatty():
        os.environ.setdefault("TQDM_DISABLE", "1")  # lm-eval's bars
    libraries.quiet()
    from lora_recipes.evaluation import evaluate, lm_eval_run, scorecards

    names, manager = tasks.chosen(named, include_path)
    chosen = evaluate.choose(runs, base, adapter)
    ready, skipped = tasks.prepare(names, manager, limit)
    for name, reason in skipped.items():
        click.echo(f"{name} is skipped: {reason}", err=True)
    if not ready:
        raise click.ClickException(f"no task left to run; {' and '.join(tasks.OFFLINE)} need nothing.")
    scores = lm_eval_run.score(chosen, ready, limit, batch_size)
    more = {"skipped": skipped, "limit": limit}
    sections = {system: scorecards.benchmark_section(system, scores, watch, **more) for system in scores}
    for system, section in sections.items():
        click.echo(files.relative(system.record("benchmark", section)), err=True)
    click.echo(_table(sections))
    for system, section in sections.items():
        tracking.log(system, "benchmark", section["metrics"])


if __name__ == "__main__":
    main()
