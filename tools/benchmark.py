#!/usr/bin/env python3
"""Benchmark: the base model and its variants on multiple-choice tasks, with lm-eval."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lora_recipes.config import runfile
from lora_recipes.evaluation import tasks
from lora_recipes.results import intervals, result_files, tables, tracking
from lora_recipes.support import files, libraries

import click

if TYPE_CHECKING:
    from lora_recipes.evaluation.lm_eval_run import Candidate

Scores = dict[str, dict[str, Any]]
"""Task -> metrics, outcomes, seconds: see likelihood.measure."""


def _score(
    candidates: "list[Candidate]", ready: list[tasks.Task], limit: int | None, batch_size: int | None
) -> "dict[Candidate, Scores]":
    from lora_recipes.evaluation import lm_eval_run
    from lora_recipes.support import processes

    import torch

    size = batch_size or (16 if processes.on_cpu() else 32)
    bench = lm_eval_run.Bench(size)
    try:
        return {
            candidate: {task.name: bench.score(candidate, task, limit) for task in ready} for candidate in candidates
        }
    except torch.OutOfMemoryError:
        raise click.ClickException(
            f"out of memory with batches of {size}; run the same command with a smaller --batch-size, "
            "the finished tasks are kept."
        ) from None


def _differences(candidate: "Candidate", scores: "dict[Candidate, Scores]") -> dict[str, dict[str, Any]]:
    """Other system of the recipe -> metric -> paired difference to it over the same questions."""
    if candidate.adapter is None:
        return {}
    others = [other for other in scores if other is not candidate and other.folder.parent == candidate.folder.parent]
    return {
        other.name: {
            f"{task}_{metric}": intervals.difference(_numbers(mine), _numbers(scores[other][task]["outcomes"][metric]))
            for task, score in scores[candidate].items()
            for metric, mine in score["outcomes"].items()
        }
        for other in others
    }


def _numbers(outcomes: str) -> list[float]:
    return [float(outcome) for outcome in outcomes]


def _section(
    candidate: "Candidate", scores: "dict[Candidate, Scores]", watch: result_files.Stopwatch, **more: Any
) -> Any:
    mine = scores[candidate]
    return result_files.section(
        candidate.run,
        {f"{task}_{name}": value for task, score in mine.items() for name, value in score["metrics"].items()},
        watch,
        differences=_differences(candidate, scores),
        inputs={task: score["inputs"] for task, score in mine.items()},
        outcomes={task: score["outcomes"] for task, score in mine.items()},
        seconds={task: score["seconds"] for task, score in mine.items()},
        **more,
    )


def _table(sections: "dict[Candidate, dict[str, Any]]") -> str:
    """A row a metric and system; the systems of a metric below each other."""
    several = len({candidate.run.recipe for candidate in sections}) > 1
    rows = [("task", "system", "score", "difference to base")]
    for name in next(iter(sections.values()))["metrics"]:
        for candidate, section in sections.items():
            system = f"{candidate.run.recipe} {candidate.name}" if several else candidate.name
            to_base = section["differences"].get("base", {}).get(name)
            rows.append((name, system, tables.interval(section["metrics"][name]), tables.difference(to_base)))
    return f"{tables.aligned(rows)}\n{tables.DIFFERENCE_NOTE}"


@click.command()
@click.argument("sources", nargs=-1, required=True, metavar="RUN...")
@click.option("--base", is_flag=True, help="measure the base model too")
@click.option("--tasks", "names", default=",".join(tasks.NAMES), metavar="A,B", help="instead of all four")
@click.option("--limit", type=click.IntRange(1), metavar="N", help="the first N questions of each task")
@click.option("--batch-size", type=click.IntRange(1), help="default 16, on a GPU 32")
@click.option(
    "--adapter", type=click.Path(exists=True, file_okay=False, path_type=Path), help="instead of the run's own"
)
def main(
    sources: tuple[str, ...], base: bool, names: str, limit: int | None, batch_size: int | None, adapter: Path | None
) -> None:
    """Score multiple-choice tasks with lm-eval.

    The tasks are african_history_mc (140 questions of our own) and mmlu_dev (281 of MMLU's), which
    are here, and tinyMMLU and tinyTruthfulQA, which need the network and the package tinyBenchmarks.

    Each score has a 95 % interval from lm-eval's standard error, each difference a paired bootstrap
    interval. A task whose data cannot be had here is skipped, with the reason. A killed benchmark
    goes on where it was, task by task.

    \b
    Example:
      tools/benchmark.py recipes/smollm2-african-history/lora.yaml --base --limit 20
    """
    wanted = tasks.chosen(names)
    runs = runfile.load_several(sources, adapter)
    for run in runs:
        tracking.require_login(run)
    watch = result_files.Stopwatch()
    os.environ.setdefault("TQDM_DISABLE", "1")  # lm-eval's bars; ours are shown in their place
    libraries.quiet()
    from lora_recipes.evaluation import lm_eval_run

    candidates = lm_eval_run.candidates(runs, base, adapter)
    ready, skipped = tasks.prepare(wanted, limit)
    for name, reason in skipped.items():
        click.echo(f"{name} is skipped: {reason}", err=True)
    if not ready:
        raise click.ClickException(f"no task left to run; {tasks.NAMES[0]} and {tasks.NAMES[1]} need nothing.")
    scores = _score(candidates, ready, limit, batch_size)
    sections = {candidate: _section(candidate, scores, watch, skipped=skipped, limit=limit) for candidate in candidates}
    for candidate, section in sections.items():
        path = result_files.update(candidate.run, "benchmark", section, base=candidate.adapter is None)
        click.echo(files.relative(path), err=True)
    click.echo(_table(sections))
    for candidate, section in sections.items():
        if tracking.wanted(candidate.run):
            tracking.log(candidate.run, candidate.name, "benchmark", section["metrics"])


if __name__ == "__main__":
    main()
