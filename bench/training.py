#!/usr/bin/env python3
"""Training speed at equal loss: the reference projects' way, TRL, Axolotl, LLaMA-Factory and the plain trainer.

They are the classes of bench/contenders.py. plain-compiled compiles from nothing in its first round and
finds what was compiled in the later ones. transformers groups rows by length
within 1/4 of the batches, at most 50, so few rows are grouped little: below some 400 the packed ways
show more of what a peer can do. Where the processor emulates bf16, every one trains in float32.
"""

import json
import shutil
from pathlib import Path
from typing import Any

from lora_recipes import ROOT
from lora_recipes.config import runfile
from lora_recipes.data import prompts, rows
from lora_recipes.models import bundled, loading
from lora_recipes.rendering import render
from lora_recipes.support import libraries
from lora_recipes.training import batches

import alpaca
import click
import contenders
import measuring
import peers
import rates

WORK = ROOT / ".cache" / "bench" / "training"
VALIDATION = 40
WAYS = tuple(one.name for one in contenders.ALL)
MATRIX = "the processor itself: matrix products of 2048 x 2048"


def prepare(data: Path | None, wanted: int, sequence_len: int) -> dict[str, Any]:
    """Write rows and run files into WORK; gives the settings that the result notes.

    Raises click.ClickException for fewer rows of at most sequence_len tokens than wanted.
    """
    WORK.mkdir(parents=True, exist_ok=True)
    for one in contenders.ALL:
        shared = common(WORK / "out" / one.name, WORK / "train.json", WORK / "validation.json", sequence_len)
        text = render.render(alpaca.RECIPE, "lora", (*shared, *one.settings))
        (WORK / f"{one.name}.yaml").write_text(text, encoding="utf-8")
    run = runfile.load(WORK / "plain.yaml")
    tokenizer, fmt = loading.load_tokenizer(run), prompts.prompt_format(run, 0, "datasets")
    found = alpaca.fitting(alpaca.load(data), tokenizer, fmt, sequence_len)
    if len(found) < wanted + VALIDATION:
        raise click.ClickException(
            f"{alpaca.name(data)}: {len(found)} rows of at most {sequence_len} tokens, {VALIDATION} of them validate; "
            f"give --rows {max(0, len(found) - VALIDATION)} or fewer."
        )
    train, validation = found[:wanted], found[wanted : wanted + VALIDATION]
    (WORK / "train.json").write_text(json.dumps(train), encoding="utf-8")
    (WORK / "validation.json").write_text(json.dumps(validation), encoding="utf-8")
    _write_pairs(tokenizer, run)
    for one in contenders.ALL:
        one.prepare(WORK, run.model(), sequence_len)
    made = batches.tokenize(run, tokenizer, "train")
    assert made is not None
    tokens, trained = made.tokens, made.trained_tokens
    return {
        "data": alpaca.name(data),
        "rows": wanted,
        "sequence_len": sequence_len,
        "dtype": measuring.dtype(),
        "tokens": tokens,
        "trained_tokens": trained,
        "flops_per_token": round(rates.flops(run).of(tokens, trained) / tokens),
        "llamafactory": peers.versions(),
    }


def _write_pairs(tokenizer: Any, run: runfile.RunFile) -> None:
    """The training rows as whole texts, for contenders that read those."""
    texts = [
        {"prompt": fmt.prompt(row), "answer": row[fmt.field_output] + tokenizer.eos_token}
        for part, fmt in rows.load_parts(run, "train")
        for row in part
    ]
    peers.write_rows(WORK / peers.ROWS, texts)


def common(output: Path, train: Path, validation: Path, sequence_len: int) -> tuple[str, ...]:
    """What every run file of the benchmarks sets: the embedded model, LoRA on attention, one pass, no evaluation."""
    return (
        *(f"base_model={bundled.ensure_chat_model()}", f"output_dir={output}", f"sequence_len={sequence_len}"),
        *(f"datasets.0.path={train}", "datasets.0.split=train"),
        *(f"test_datasets.0.path={validation}", "test_datasets.0.split=train"),
        *("lora_r=8", "lora_alpha=16", "lora_dropout=0.0", "lora_target_modules=[q_proj, k_proj, v_proj, o_proj]"),
        *("num_epochs=1", "global_batch=8", "micro_batch_size=8", "learning_rate=2e-4", "warmup_ratio=0.0"),
        *(f"bf16={str(measuring.dtype() == 'bfloat16').lower()}", "tf32=null", "logging_steps=1"),
        "plugins=[lora_recipes.plugin.CpuPlugin]",
        *("evals_per_epoch=null", "eval_strategy=no", "saves_per_epoch=null", "save_strategy=no"),
        "auto_resume_from_checkpoints=false",
    )


@click.command()
@click.option(
    "--data",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="rows in Alpaca's columns  [default: made rows as long as LLaMA-Factory's demo rows]",
)
@click.option("--rows", default=96, show_default=True, type=click.IntRange(8), help="training rows, in file order")
@click.option("--sequence-len", default=512, show_default=True, type=click.IntRange(64), help="longest row in tokens")
@click.option("--rounds", default=3, show_default=True, type=click.IntRange(1), help="runs of each way, in turn")
@click.option("--ways", default=",".join(WAYS), show_default=True, metavar="A,B", help="which to run")
def main(data: Path | None, rows: int, sequence_len: int, rounds: int, ways: str) -> None:
    """Train the embedded model one pass over the same rows, each way in turn.

    \b
    Example:
      bench/training.py --rows 96 --rounds 3 --ways reference,plain
    """
    chosen = ways.split(",")
    if strange := set(chosen) - set(WAYS):
        raise click.UsageError(f"--ways {sorted(strange)[0]}: expected some of {', '.join(WAYS)}.")
    libraries.quiet()
    settings = prepare(data, rows, sequence_len)
    shutil.rmtree(WORK / "compiled", ignore_errors=True)
    started = [_way("matmul", settings, MATRIX), *(_contender(name, settings) for name in chosen)]
    measured = measuring.interleave(started, rounds, WORK / "log.txt")
    rates.add_shares(measured, settings["flops_per_token"])
    click.echo(measuring.save("training", started, measured, **settings), err=True)


def _contender(name: str, settings: dict[str, Any]) -> measuring.Way:
    one = contenders.named(name)
    return _way(name, settings, one.words, one.absent(), one.once)


def _way(name: str, settings: dict[str, Any], words: str, absent: str = "", once: bool = False) -> measuring.Way:
    command = measuring.python("training_run.py", name, settings["tokens"], settings["sequence_len"])
    compiled = {"TORCHINDUCTOR_CACHE_DIR": str(WORK / "compiled" / name)}
    return measuring.Way(name, words, command, compiled, absent, once)


if __name__ == "__main__":
    main()
