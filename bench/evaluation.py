#!/usr/bin/env python3
"""Evaluation speed: test questions answered and scored, the reference projects' way and tools/eval.py."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

from lora_recipes import ROOT
from lora_recipes.rendering import render

import click
import measuring

WORK = ROOT / ".cache" / "bench" / "evaluation"
RECIPE = "smollm2-african-history"
NEW_TOKENS = 128
STEPS = 40
WAYS = {
    "reference": "a transformers pipeline, one question at a time; base, adapter and scorer loaded anew for each",
    "sorted": "our simpler way: transformers' generate in batches sorted by length, base and scorer loaded once",
    "ours": "tools/eval.py on all adapters at once",
}


def run_file(number: int, dtype: str) -> Path:
    """The run file of one adapter, its output folder emptied of answers."""
    folder = WORK / f"adapter{number}"
    settings = (f"output_dir={folder}", f"max_steps={STEPS}", f"bf16={str(dtype == 'bfloat16').lower()}")
    never = ("evals_per_epoch=null", "eval_strategy=no", "saves_per_epoch=null", "save_strategy=no")
    path = WORK / f"adapter{number}-{dtype}.yaml"
    text = render.render(RECIPE, "peft", (*settings, *never, "auto_resume_from_checkpoints=false"))
    path.write_text(text, encoding="utf-8")
    for answers in folder.glob("answers-*"):
        answers.unlink()
    return path


def prepare(adapters: int) -> None:
    """One adapter trained for STEPS steps; the others are its weights moved by 2 % of noise, by their number's seed."""
    WORK.mkdir(parents=True, exist_ok=True)
    first = WORK / "adapter1"
    if not (first / "adapter_model.safetensors").exists():
        path = run_file(1, measuring.dtype())
        subprocess.run([sys.executable, str(ROOT / "tools" / "train.py"), str(path)], cwd=ROOT, check=True)
    import torch
    from safetensors import torch as tensors

    for number in range(2, adapters + 1):
        folder = WORK / f"adapter{number}"
        folder.mkdir(exist_ok=True)
        noise = torch.Generator().manual_seed(number)
        weights = tensors.load_file(first / "adapter_model.safetensors")
        moved = {
            name: found + 0.02 * found.std() * torch.randn(found.shape, generator=noise)
            for name, found in weights.items()
        }
        tensors.save_file(moved, folder / "adapter_model.safetensors", metadata={"format": "pt"})
        shutil.copy(first / "adapter_config.json", folder)


def identical(questions: int, log: Path) -> float:
    """The share of answers that are the same all ways in float32."""
    found = []
    for name in WAYS:
        way = measuring.Way(name, "", measuring.python("evaluation_ways.py", name, questions, 1, "float32"))
        if not measuring.interleave([way], 1, log)[name]:
            raise click.ClickException(f"{name} in float32: {way.absent}; see {log}.")
        found.append(json.loads((WORK / f"{name}.json").read_text(encoding="utf-8")))
    return sum(len(set(answers)) == 1 for answers in zip(*found, strict=True)) / len(found[0])


@click.command()
@click.option("--questions", default=100, show_default=True, type=click.IntRange(2), help="of the test split")
@click.option("--adapters", default="1,4", show_default=True, metavar="N,M", help="how many, each measured by itself")
@click.option("--rounds", default=3, show_default=True, type=click.IntRange(1), help="runs of each way, in turn")
@click.option("--ways", default=",".join(WAYS), show_default=True, metavar="A,B", help="which to run")
@click.option("--identity/--no-identity", default=True, help="compare the answers in float32 first")
def main(questions: int, adapters: str, rounds: int, ways: str, identity: bool) -> None:
    """Answer and score the same questions all ways, everything from start to result counted.

    In the recipe's bf16, or in float32 where the processor emulates it.

    \b
    Example:
      bench/evaluation.py --questions 12 --adapters 1 --rounds 1
    """
    counts, chosen = [int(one) for one in adapters.split(",")], ways.split(",")
    if strange := set(chosen) - set(WAYS):
        raise click.UsageError(f"--ways {sorted(strange)[0]}: expected some of {', '.join(WAYS)}.")
    prepare(max(counts))
    log = WORK / "log.txt"
    share = identical(questions, log) if identity else None
    started = [
        measuring.Way(
            f"{name}-{count}",
            f"{WAYS[name]}; {count} adapter{'s' * (count > 1)}",
            measuring.python("evaluation_ways.py", name, questions, count, measuring.dtype()),
        )
        for count in counts
        for name in chosen
    ]
    measured = measuring.interleave(started, rounds, log)
    about = {"questions": questions, "adapters": counts, "dtype": measuring.dtype()}
    path = measuring.save(
        "evaluation", started, measured, **about, max_new_tokens=NEW_TOKENS, identical_in_float32=share
    )
    click.echo(path, err=True)
    if share is not None:
        click.echo(f"identical answers in float32: {share:.0%}")
    for way in started:
        middle = measuring.medians(measured[way.name])
        click.echo(f"{way.name:<14}{middle.get('wall_seconds', float('nan')):8.1f} s" if middle else way.absent)


if __name__ == "__main__":
    main()
