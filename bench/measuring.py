"""Ways of doing one thing, run in turn: what else the machine does hits all of them alike."""

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lora_recipes import ROOT
from lora_recipes.results import result_files
from lora_recipes.support import files, processes

import click

RESULTS = ROOT / "results" / "bench"


@dataclass
class Way:
    """One contender: a command whose last line on stdout is a JSON mapping of numbers."""

    name: str
    words: str
    command: Sequence[str]
    environment: dict[str, str] = field(default_factory=dict)
    absent: str = ""
    """Why it cannot be run here; '' when it can."""
    once: bool = False
    """In the first round only: it takes many times as long as the others."""


Measured = dict[str, list[dict[str, Any]]]
"""What the runs of each way measured, by its name."""


def interleave(
    ways: Sequence[Way], rounds: int, log: Path, after_each: Callable[[Measured], None] = lambda found: None
) -> Measured:
    """Run each way once a round, in turn; of a way that runs `once` there are the measurements of one round.

    A way that fails is left out of the rounds that follow, and its last words become its reason. `after_each` is given
    what is there after each way, failed or not. After an interruption the whole rounds remain; KeyboardInterrupt is
    raised when there is none.
    """
    found: Measured = {way.name: [] for way in ways}
    for number in range(rounds):
        try:
            for way in (way for way in ways if not way.absent and (number == 0 or not way.once)):
                click.echo(f"round {number + 1} of {rounds}: {way.name} …", err=True)
                measured = _run(way, log)
                if measured:
                    found[way.name].append(measured)
                    click.echo(f"  {json.dumps(measured)}", err=True)
                after_each(found)
        except KeyboardInterrupt:
            if number == 0:
                raise
            click.echo(f"interrupted in round {number + 1}, the rounds before it are kept", err=True)
            return {name: runs[:number] for name, runs in found.items()}
    return found


def _run(way: Way, log: Path) -> dict[str, Any] | None:
    load, begun = os.getloadavg()[0], time.monotonic()
    done = subprocess.run(
        list(way.command), capture_output=True, text=True, env=os.environ | way.environment, cwd=ROOT, check=False
    )
    with open(log, "a", encoding="utf-8") as file:
        file.write(f"$ {' '.join(way.command)}\n{done.stdout}\n{done.stderr}\n")
    try:
        if done.returncode:
            raise ValueError(f"exit {done.returncode}")
        measured = json.loads(done.stdout.strip().splitlines()[-1])
    except (ValueError, IndexError):
        last = (done.stderr.strip().splitlines() or ["without a word"])[-1]
        way.absent = f"it failed: {last[:200]}"
        click.echo(f"  {way.absent}; see {log}", err=True)
        return None
    return {**measured, "wall_seconds": round(time.monotonic() - begun, 1), "load_before": round(load, 1)}


def medians(measured: list[dict[str, Any]]) -> dict[str, float]:
    """The median of every number over the rounds."""
    names = measured[0] if measured else {}
    return {
        name: statistics.median(one[name] for one in measured)
        for name in names
        if all(isinstance(one.get(name), (int, float)) for one in measured)
    }


def save(name: str, ways: Sequence[Way], measured: Measured, file: str = "", /, **settings: Any) -> Path:
    """results/bench/<file or name>.json: settings, rounds, machine, per way the rounds' measurements and medians."""
    content = {
        "benchmark": name,
        "settings": {**settings, "rounds": max(len(runs) for runs in measured.values())},
        "environment": result_files.environment(),
        "ways": {
            way.name: {
                "words": way.words,
                "skipped": way.absent,
                "median": medians(measured[way.name]),
                "rounds": measured[way.name],
            }
            for way in ways
        },
    }
    path = RESULTS / f"{file or name}.json"
    files.write_text(path, json.dumps(content, indent=1) + "\n")
    return path


def dtype() -> str:
    """bfloat16, or float32 where the processor emulates bf16: it would be the emulation that is measured, for days."""
    return "bfloat16" if processes.has_bf16() else "float32"


def python(script: str, *options: object) -> list[str]:
    """The command of a script in bench/ with this Python."""
    return [sys.executable, str(ROOT / "bench" / script), *map(str, options)]
