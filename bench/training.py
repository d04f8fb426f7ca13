#!/usr/bin/env python3
"""Training speed at equal loss: the reference projects' way, TRL, Axolotl, LLaMA-Factory and the plain trainer.

The peers are set up for speed as their documentation advises, as far as it works on a CPU: bf16 base
weights, rows of like length together or packed, activations kept, SDPA (FlashAttention, Liger's and
Unsloth's kernels need a GPU); TRL makes logits for labels only (its default). Packs that have one shape
are also tried with torch.compile, which none of the three advises. plain-compiled compiles from nothing
in its first round and finds what was compiled in the later ones. transformers groups rows by length
within 1/4 of the batches, at most 50, so few rows are grouped little: below some 400 the packed ways
show more of what a peer can do. Where the processor emulates bf16, every way trains in float32.
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
import measuring
import peers
import rates
import yaml

WORK = ROOT / ".cache" / "bench" / "training"
VALIDATION = 40
WAYS = {
    "reference": "transformers' Trainer as LoRAfrica used it: fp32, rows in file order, batches of 2, full logits",
    "reference-bf16": "the same in bf16",
    "trl": "TRL's SFTTrainer, completion only, batches of 8 of like length",
    "trl-packed": "the same, packed to sequence_len, 4 packs a step",
    "trl-padding-free": "the same, batches of 8 in one row without padding",
    "trl-compiled": "the same as trl-packed with torch_compile, each pack padded to sequence_len",
    "axolotl": "Axolotl, batches of 8 of like length",
    "axolotl-packed": "Axolotl, packed to sequence_len, 4 packs a step",
    "axolotl-compiled": "the same as axolotl-packed with torch_compile",
    "llamafactory": "LLaMA-Factory, batches of 8 of like length",
    "llamafactory-packed": "LLaMA-Factory, neat_packing, 4 packs a step",
    "llamafactory-compiled": "the same as llamafactory-packed with torch_compile",
    "plain": "tools/train.py, batches of 8 in the shuffled order of Axolotl, without padding",
    "plain-compiled": "the same with torch_compile",
}
SLOW = ("trl-compiled", "axolotl-compiled", "llamafactory-compiled")
"""They compile for minutes, and run in the first round only."""
MATRIX = "the processor itself: matrix products of 2048 x 2048"
PACKED = ("sample_packing=true", "micro_batch_size=1", "gradient_accumulation_steps=4")
SETTINGS: dict[str, tuple[str, ...]] = {
    "plain": (),
    "plain-compiled": ("torch_compile=true",),
    "reference": ("bf16=false",),
    "axolotl": ("group_by_length=true", "include_tokens_per_second=true"),
    "axolotl-packed": (*PACKED, "include_tokens_per_second=true"),
    "axolotl-compiled": (*PACKED, "include_tokens_per_second=true", "torch_compile=true"),
}
"""What a run file says beyond the common settings; ways without one train from the plain one's."""
LLAMA_FACTORY_PACKED: dict[str, Any] = {
    "packing": True,
    "neat_packing": True,
    "per_device_train_batch_size": 1,
    "gradient_accumulation_steps": 4,
    "train_sampling_strategy": "random",
    "include_num_input_tokens_seen": "all",  # its packs' mask numbers the rows and is no count
}
LLAMA_FACTORY: dict[str, dict[str, Any]] = {
    "llamafactory": {},
    "llamafactory-packed": LLAMA_FACTORY_PACKED,
    "llamafactory-compiled": LLAMA_FACTORY_PACKED | {"torch_compile": True},
}


def prepare(data: Path | None, wanted: int, sequence_len: int) -> dict[str, Any]:
    """Write rows and run files into WORK; gives the settings that the result notes.

    Raises click.ClickException for fewer rows of at most sequence_len tokens than wanted.
    """
    WORK.mkdir(parents=True, exist_ok=True)
    for way, more in SETTINGS.items():
        shared = common(WORK / "out" / way, WORK / "train.json", WORK / "validation.json", sequence_len)
        (WORK / f"{way}.yaml").write_text(render.render(alpaca.RECIPE, "lora", (*shared, *more)), encoding="utf-8")
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
    _write_llama_factory(run, tokenizer, fmt, sequence_len)
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


def _write_llama_factory(run: runfile.RunFile, tokenizer: Any, fmt: prompts.PromptFormat, sequence_len: int) -> None:
    texts = [
        {"prompt": fmt.prompt(row), "answer": row[fmt.field_output] + tokenizer.eos_token}
        for part, _ in rows.load_parts(run, "train")
        for row in part
    ]
    peers.write_rows(WORK / "llamafactory", texts)
    base = run.model() if measuring.dtype() == "bfloat16" else peers.in_float32(Path(run.model()), WORK / "base")
    for way, more in LLAMA_FACTORY.items():
        written = peers.configuration(str(base), WORK / "llamafactory", WORK / "out" / way, sequence_len, **more)
        (WORK / f"{way}.yaml").write_text(yaml.safe_dump(written, sort_keys=False), encoding="utf-8")


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
    started = [_way("matmul", settings, MATRIX), *(_way(name, settings, WAYS[name]) for name in chosen)]
    measured = measuring.interleave(started, rounds, WORK / "log.txt")
    rates.add_shares(measured, settings["flops_per_token"])
    click.echo(measuring.save("training", started, measured, **settings), err=True)


def _way(name: str, settings: dict[str, Any], words: str) -> measuring.Way:
    command = measuring.python("training_ways.py", name, settings["tokens"], settings["sequence_len"])
    compiled = {"TORCHINDUCTOR_CACHE_DIR": str(WORK / "compiled" / name)}
    absent = peers.absent() if name in LLAMA_FACTORY else ""
    if settings["dtype"] != "bfloat16" and name == "reference-bf16":
        absent = "this processor emulates bf16"
    return measuring.Way(name, words, command, compiled, absent, once=name in SLOW)


if __name__ == "__main__":
    main()
