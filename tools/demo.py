#!/usr/bin/env python3
"""The whole path on the embedded model and data: check, train, merge, evaluate, benchmark, compare, report."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from lora_recipes import ROOT
from lora_recipes.rendering import render
from lora_recipes.results import result_files
from lora_recipes.support import files, processes, terminal

import click

RECIPE = "smollm2-african-history"
OUTPUTS = f"outputs/{RECIPE}"
LOG = f"{OUTPUTS}/axolotl.log"
SHOWN = (
    r"sed -u -n -E 's/.*\r//; s/.*(step [0-9]+\/)/\1/; "
    r"/^(step |run file|Error|Traceback|adapter|.*nothing to do|told to end)/p'"
)
"""Of the hundreds of lines that Axolotl prints, those about the run, without progress bars; LOG gets all of them."""


def run_files() -> tuple[str, list[str]]:
    """The options that render the LoRA run, and both run files: in float32 where bf16 would take days."""
    if processes.has_bf16():
        return "", [f"recipes/{RECIPE}/{name}.yaml" for name in ("lora", "peft")]
    processes.warn_of_emulated_bf16()
    for name in ("lora", "peft"):
        files.write_text(ROOT / OUTPUTS / f"{name}.yaml", render.render(RECIPE, name, ("bf16=false",)))
    return " --set bf16=false", [f"{OUTPUTS}/{name}.yaml" for name in ("lora", "peft")]


def commands(options: str, lora: str, peft: str) -> list[tuple[str, str]]:
    return [
        ("Check before training", f"tools/check.py {lora}"),
        ("Train LoRA with Axolotl", f"tools/render.py --recipe {RECIPE}{options} --variant lora | axolotl train -"),
        ("Train the same with plain PEFT", f"tools/train.py {peft}"),
        ("Merge, and verify the merge", f"tools/merge.py {lora}"),
        ("Answer and score the test questions", f"tools/eval.py {lora} {peft} --base"),
        ("Benchmark", f"tools/benchmark.py {lora} {peft} --base --tasks african_history_mc,mmlu_dev"),
        ("Compare the answers", f"tools/compare.py {lora} {peft} --base"),
        ("Report", f"tools/report.py {OUTPUTS}"),
    ]


def run(command: str) -> None:
    """Run a command as a shell would; each tool leaves out by itself what is done already."""
    # Ctrl-C is for the trainer, which then still says where its checkpoint is.
    shown = f"{{ {command}; }} 2>&1 | (trap '' INT; tee -a {LOG} | {SHOWN})" if "axolotl" in command else command
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ.get('PATH', os.defpath)}"}
    before = signal.signal(signal.SIGINT, lambda *_: None)  # what it runs ends by itself
    status = subprocess.run(["bash", "-o", "pipefail", "-c", shown], cwd=ROOT, env=environment).returncode
    signal.signal(signal.SIGINT, before)
    if status in (130, -signal.SIGINT):
        raise SystemExit(130)
    if status:
        where = f", and all of it in {LOG}" if "axolotl" in command else ""
        raise click.ClickException(f"`{command}` failed: see above{where}; `make demo` goes on from here.")


def summary(system: str) -> str:
    section = result_files.read(ROOT / OUTPUTS / system / "result.json")["evaluation"]
    f1 = section["metrics"]["bertscore_f1"]
    line = f"  {system:<6} BERTScore F1 {f1['mean']:.4f} [{f1['low']:.4f}, {f1['high']:.4f}]"
    if to_base := section.get("differences", {}).get("base"):
        line += f", difference to base {to_base['mean']:+.4f} [{to_base['low']:+.4f}, {to_base['high']:+.4f}]"
    return line


@click.command(cls=terminal.Tool)
def main() -> None:
    """Run every step of the project on a small model, on this machine.

    What is done already is not done again.

    \b
    Example:
      make demo
    """
    begun = time.monotonic()
    (ROOT / OUTPUTS).mkdir(parents=True, exist_ok=True)
    options, runs = run_files()
    steps = commands(options, *runs)
    for number, (title, command) in enumerate(steps, 1):
        minutes = (time.monotonic() - begun) / 60
        click.secho(f"\n[{number}/{len(steps)}] {title}   ({minutes:.1f} min so far)", bold=True, err=True)
        click.echo(f"$ {command}", err=True)
        run(command)
    click.secho(f"\nDone in {(time.monotonic() - begun) / 60:.1f} min. 95 % intervals in brackets.", bold=True)
    click.echo("\n".join(summary(system) for system in ("base", "lora", "peft")))
    click.echo(f"\n  results   {OUTPUTS}/index.html\n  answers   {OUTPUTS}/compare.html")
    click.echo(
        "\nOn a GPU, the same with a model of your choice:"
        "\n  . .venv/bin/activate"
        "\n  tools/render.py --recipe phi4-mini-african-history --variant lora | axolotl train -"
    )


if __name__ == "__main__":
    main()
