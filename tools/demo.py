#!/usr/bin/env python3
"""The whole path on the embedded model and data: train, merge, evaluate, benchmark, compare, report."""

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from lora_recipes import ROOT
from lora_recipes.config import runfile
from lora_recipes.rendering import render
from lora_recipes.results import result_files
from lora_recipes.support import files, processes

import click

RECIPE = "smollm2-african-history"
OUTPUTS = ROOT / "outputs" / RECIPE
BIN = Path(sys.executable).parent
VARIANTS = ("lora", "peft")

AXOLOTL_SAYS = ("step ", "run file kept", "Error", "Traceback", "adapter")
"""The lines of Axolotl's output that are shown; all of it goes into a log."""


def _run_files() -> tuple[str, list[str]]:
    """The command that renders, and the run files: the published ones, in float32 where bf16 would take days."""
    command = f"tools/render.py --recipe {RECIPE}"
    if processes.has_bf16():
        return command, [f"recipes/{RECIPE}/{name}.yaml" for name in VARIANTS]
    processes.warn_of_emulated_bf16()
    paths = [OUTPUTS / f"{name}.yaml" for name in VARIANTS]
    for name, path in zip(VARIANTS, paths, strict=True):
        files.write_text(path, render.render(RECIPE, name, ("bf16=false",)))
    return f"{command} --set bf16=false", [str(path.relative_to(ROOT)) for path in paths]


def _steps(command: str, runs: list[str]) -> list[tuple[str, str]]:
    return [
        ("Check before training", f"tools/check.py {runs[0]}"),
        ("Train LoRA with Axolotl", f"{command} --variant lora | axolotl train -"),
        ("Train the same with plain PEFT", f"tools/train.py {runs[1]}"),
        ("Merge, and verify the merge", f"tools/merge.py {runs[0]}"),
        ("Answer and score the test questions", f"tools/eval.py {' '.join(runs)} --base"),
        ("Benchmark", f"tools/benchmark.py {' '.join(runs)} --base --tasks african_history_mc,mmlu_dev"),
        ("Compare the answers", f"tools/compare.py {' '.join(runs)} --base"),
        ("Report", f"tools/report.py outputs/{RECIPE}"),
    ]


def _run(number: str, title: str, command: str, begun: float) -> None:
    minutes = (time.monotonic() - begun) / 60
    click.secho(f"\n[{number}] {title}   ({minutes:.1f} min so far)", bold=True, err=True)
    click.echo(f"  $ {command}", err=True)
    log = OUTPUTS / "demo.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    path = f'export PATH="{BIN}:$PATH"; '
    with open(log, "a", encoding="utf-8") as file:
        running = subprocess.Popen(
            ["bash", "-o", "pipefail", "-c", path + command],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
        )
        assert running.stdout is not None
        for line in _kept(running.stdout, file):
            if "axolotl" not in command or line.startswith(AXOLOTL_SAYS):
                click.echo(f"  {line}", err=True)
    if running.wait():
        raise click.ClickException(
            f"`{command}` failed; all that it said is in {log}. `make demo` goes on from here when that is mended."
        )


def _kept(stream: IO[str], log: IO[str]) -> Iterator[str]:
    """Each line without its end, once it is in the log."""
    for line in stream:
        log.write(line)
        log.flush()
        if line.strip():
            yield line.rstrip()


def _summary(runs: list[str]) -> list[str]:
    lines = []
    base = _metrics(OUTPUTS / "base")
    lines.append(f"base   BERTScore F1 {_interval(base)}")
    for source in runs:
        run = runfile.load(ROOT / source)
        section = json.loads((run.output_dir / "result.json").read_text(encoding="utf-8"))["evaluation"]
        difference = section["differences"]["base"]
        lines.append(
            f"{run.variant:<6} BERTScore F1 {_interval(section['metrics'])}, "
            f"difference to base {difference['mean']:+.4f} [{difference['low']:+.4f}, {difference['high']:+.4f}]"
        )
    return lines


def _metrics(folder: Path) -> dict[str, dict[str, float]]:
    return dict(result_files.read(folder / "result.json")["evaluation"]["metrics"])


def _interval(metrics: dict[str, dict[str, float]]) -> str:
    f1 = metrics["bertscore_f1"]
    return f"{f1['mean']:.4f} [{f1['low']:.4f}, {f1['high']:.4f}]"


@click.command()
def main() -> None:
    """Run every step of the project on a small model, on this machine.

    What is done already is not done again.

    \b
    Example:
      make demo
    """
    begun = time.monotonic()
    command, runs = _run_files()
    steps = _steps(command, runs)
    for number, (title, command) in enumerate(steps, 1):
        _run(f"{number}/{len(steps)}", title, command, begun)
    click.secho(f"\nDone in {(time.monotonic() - begun) / 60:.1f} min. 95 % intervals in brackets.", bold=True)
    for line in _summary(runs):
        click.echo(f"  {line}")
    click.echo(
        f"\n  results   outputs/{RECIPE}/index.html"
        f"\n  answers   outputs/{RECIPE}/compare.html"
        "\n\nOn a GPU, the same with a model of your choice:"
        "\n  . .venv/bin/activate"
        "\n  tools/render.py --recipe phi4-mini-african-history --variant lora | axolotl train -"
        "\n  tools/eval.py recipes/phi4-mini-african-history/lora.yaml --base"
    )


if __name__ == "__main__":
    main()
