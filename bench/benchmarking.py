#!/usr/bin/env python3
"""Benchmark speed: lm-eval's own command once per adapter, and tools/benchmark.py once for all."""

import json
from pathlib import Path

from lora_recipes import ROOT

import click
import evaluation
import measuring

WORK = ROOT / ".cache" / "bench" / "benchmark"
TASK = "african_history_mc"
WAYS = {
    "lm-eval": "the command lm_eval, once per adapter",
    "hflm": "our simpler way: lm-eval's own HFLM on a base loaded once, the adapters switched on it",
    "ours": "tools/benchmark.py on all adapters at once",
}


@click.command()
@click.option("--limit", default=140, show_default=True, type=click.IntRange(2), help=f"questions of {TASK}")
@click.option("--adapters", default=4, show_default=True, type=click.IntRange(1), help="how many")
@click.option("--rounds", default=3, show_default=True, type=click.IntRange(1), help="runs of each way, in turn")
@click.option(
    "--dtype", default="float32", show_default=True, type=click.Choice(["float32", "bfloat16"]), help="of both"
)
def main(limit: int, adapters: int, rounds: int, dtype: str) -> None:
    """Score the same adapters on the same questions all ways, everything from start to result counted.

    \b
    Example:
      bench/benchmarking.py --limit 20 --adapters 2 --rounds 1
    """
    WORK.mkdir(parents=True, exist_ok=True)
    evaluation.prepare(adapters)
    started = [
        measuring.Way(name, words, measuring.python("benchmarking_ways.py", name, limit, adapters, dtype))
        for name, words in WAYS.items()
    ]
    measured = measuring.interleave(started, rounds, WORK / "log.txt")
    difference = _difference()
    path = measuring.save(
        "benchmark",
        started,
        measured,
        task=TASK,
        questions=limit,
        adapters=adapters,
        dtype=dtype,
        largest_difference_of_scores=difference,
    )
    click.echo(path, err=True)
    for way in started:
        middle = measuring.medians(measured[way.name])
        click.echo(f"{way.name:<10}{middle['wall_seconds']:8.1f} s" if middle else f"{way.name}: {way.absent}")
    click.echo(f"largest difference of a score: {difference}")


def _difference() -> float | None:
    """Between the ways' last runs; None when one of them did not run."""
    paths = [WORK / f"{name}.json" for name in WAYS]
    if not all(path.exists() for path in paths):
        return None
    one, *others = (json.loads(Path(path).read_text(encoding="utf-8")) for path in paths)
    return max(abs(one[key] - other[key]) for key in one for other in others)


if __name__ == "__main__":
    main()
