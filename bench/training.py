#!/usr/bin/env python3
"""Training speed at equal loss: the reference projects' way, TRL, Axolotl, LLaMA-Factory and the plain trainer."""

import json
from pathlib import Path

from lora_recipes import ROOT, batches, embedded, models, rendering, runfile

import click
import measuring

WORK = ROOT / ".cache" / "bench" / "training"
VALIDATION = 40
WAYS = {
    "reference": "transformers' Trainer as LoRAfrica used it: rows in file order, batches of 2, full logits",
    "trl": "TRL's SFTTrainer, completion only, batches of 8 of like length",
    "trl-packed": "the same, packed to sequence_len",
    "axolotl": "Axolotl, batches of 8 of like length",
    "axolotl-packed": "Axolotl, packed to sequence_len",
    "plain": "tools/train.py, batches of 8 in the shuffled order of Axolotl",
}


def prepare(data: Path, rows: int, sequence_len: int) -> int:
    """Write rows and run files into WORK; gives the tokens of the training rows that fit."""
    WORK.mkdir(parents=True, exist_ok=True)
    found = json.loads(data.read_text(encoding="utf-8"))[: rows + VALIDATION]
    if len(found) < rows + VALIDATION:
        raise click.ClickException(f"{data} has {len(found)} rows; give one with {rows + VALIDATION}, or fewer --rows.")
    (WORK / "train.json").write_text(json.dumps(found[:rows]), encoding="utf-8")
    (WORK / "validation.json").write_text(json.dumps(found[rows:]), encoding="utf-8")
    for way, more in {
        "plain": (),
        "axolotl": ("group_by_length=true",),
        "axolotl-packed": ("sample_packing=true", "micro_batch_size=1", "gradient_accumulation_steps=4"),
    }.items():
        text = rendering.render("phi1.5-alpaca-gpt4", "lora", (*_settings(way, sequence_len), *more))
        (WORK / f"{way}.yaml").write_text(text, encoding="utf-8")
    run = runfile.load(WORK / "plain.yaml")
    made = batches.tokenize(run, models.load_tokenizer(run), "train")
    assert made is not None
    return made.tokens


def _settings(way: str, sequence_len: int) -> tuple[str, ...]:
    return (
        *(f"base_model={embedded.ensure_chat_model()}", f"output_dir={WORK}/out/{way}"),
        *(f"datasets.0.path={WORK}/train.json", "datasets.0.split=train", f"sequence_len={sequence_len}"),
        *(f"test_datasets.0.path={WORK}/validation.json", "test_datasets.0.split=train"),
        *("lora_r=8", "lora_alpha=16", "lora_dropout=0.0", "lora_target_modules=[q_proj, k_proj, v_proj, o_proj]"),
        *("num_epochs=1", "global_batch=8", "micro_batch_size=8", "learning_rate=2e-4", "warmup_ratio=0.0"),
        *("bf16=true", "tf32=null", "plugins=[lora_recipes.plugin.CpuPlugin]", "logging_steps=1"),
        *("evals_per_epoch=null", "eval_strategy=no", "saves_per_epoch=null", "save_strategy=no"),
        "auto_resume_from_checkpoints=false",
    )


@click.command()
@click.option(
    "--data",
    default=ROOT.parent / "shared" / "data" / "alpaca_en_demo.json",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="rows in Alpaca's columns",
)
@click.option("--rows", default=96, show_default=True, type=click.IntRange(8), help="training rows, in file order")
@click.option("--sequence-len", default=512, show_default=True, type=click.IntRange(64), help="longest row in tokens")
@click.option("--rounds", default=3, show_default=True, type=click.IntRange(1), help="runs of each way, in turn")
@click.option("--ways", default=",".join(WAYS), show_default=True, metavar="A,B", help="which to run")
def main(data: Path, rows: int, sequence_len: int, rounds: int, ways: str) -> None:
    """Train the embedded model one pass over the same rows, each way in turn.

    \b
    Example:
      bench/training.py --rows 96 --rounds 3 --ways reference,plain
    """
    chosen = ways.split(",")
    if strange := set(chosen) - set(WAYS):
        raise click.UsageError(f"--ways {sorted(strange)[0]}: expected some of {', '.join(WAYS)}.")
    tokens = prepare(data, rows, sequence_len)
    started = [
        measuring.Way(name, WAYS[name], measuring.python("training_ways.py", name, tokens, sequence_len))
        for name in chosen
    ]
    measured = measuring.interleave(started, rounds, WORK / "log.txt")
    path = measuring.save(
        "training", started, measured, rows=rows, tokens=tokens, sequence_len=sequence_len, rounds=rounds
    )
    click.echo(path, err=True)


if __name__ == "__main__":
    main()
