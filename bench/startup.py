#!/usr/bin/env python3
"""Start-up: `--help` of every tool, rendering, and the check of a small recipe."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

from lora_recipes import ROOT

import click
import measuring

RUN = "recipes/smollm2-african-history/lora.yaml"


@click.command()
@click.option("--rounds", default=7, show_default=True, type=click.IntRange(1), help="runs of each command")
def main(rounds: int) -> None:
    """Time what a user waits for before anything happens.

    \b
    Example:
      bench/startup.py --rounds 3
    """
    tools = sorted(path.stem for path in (ROOT / "tools").glob("*.py"))
    commands = {f"{name} --help": f"tools/{name}.py --help" for name in tools}
    commands |= {
        "python": "-c pass",
        "render --variant ds2": "tools/render.py --variant ds2",
        "check": f"tools/check.py {RUN}",
    }
    ways = [
        measuring.Way(name, command, measuring.python("startup.py", "time-one", command))
        for name, command in commands.items()
    ]
    measured = measuring.interleave(ways, rounds, Path(os.devnull))
    click.echo(measuring.save("startup", ways, measured), err=True)
    for name, runs in measured.items():
        click.echo(f"{name:<24}{measuring.medians(runs).get('seconds', float('nan')):.3f} s")


def time_one(command: str) -> None:
    """Print the wall seconds of one command, run with this Python."""
    begun = time.perf_counter()
    subprocess.run([sys.executable, *command.split()], cwd=ROOT, stdout=subprocess.DEVNULL, check=True)
    print(json.dumps({"seconds": round(time.perf_counter() - begun, 4)}))


if __name__ == "__main__":
    if sys.argv[1:2] == ["time-one"]:
        time_one(sys.argv[2])
    else:
        main()
