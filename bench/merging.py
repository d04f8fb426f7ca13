#!/usr/bin/env python3
"""Merging a LoRA adapter into a 1.7 B model: PEFT's own way, Axolotl's, and tools/merge.py."""

import json
import math
import shutil
from typing import Any

from lora_recipes import ROOT
from lora_recipes.models import bundled
from lora_recipes.rendering import render
from lora_recipes.support import files

import click
import measuring

WORK = ROOT / ".cache" / "bench" / "merging"
BASE, ADAPTER = WORK / "base", WORK / "adapter"
SHAPE: dict[str, Any] = {
    **{"hidden_size": 2048, "intermediate_size": 8192, "num_attention_heads": 32, "num_key_value_heads": 32},
    **{"vocab_size": 49152, "tie_word_embeddings": True, "max_position_embeddings": 8192, "rope_theta": 130000},
}
"""SmolLM2-1.7B's, which has 24 layers."""
RANK, ALPHA = 16, 32
WAYS = {
    "peft": "from_pretrained in bf16, merge_and_unload, save_pretrained, as PEFT's documentation has it",
    "axolotl": "axolotl merge-lora, its memory-efficient default",
    "whole-weights": "the same plan and comparison as tools/merge.py --no-verify, one whole weight at a time",
    "ours-tensors-only": "tools/merge.py --no-verify: written, compared with base and adapter",
    "ours": "tools/merge.py: the same, and divergences measured",
}


def prepare(layers: int) -> None:
    """Make base, adapter and run file, unless they are there: random weights, a real tokenizer and real rows."""
    made = WORK / "layers"
    text = render.render(
        "smollm2-african-history", "lora", (f"base_model={BASE}", f"output_dir={ADAPTER}", f"lora_alpha={ALPHA}")
    )
    files.write_text(WORK / "run.yaml", text)
    if made.exists() and made.read_text() == str(layers):
        return
    shutil.rmtree(BASE, ignore_errors=True)
    shutil.rmtree(ADAPTER, ignore_errors=True)
    _write_base(layers)
    _write_adapter(layers)
    files.write_text(made, str(layers))


def linear_layers(layers: int) -> dict[str, tuple[int, int]]:
    """Name and (outputs, inputs) of the layers that the adapter changes."""
    wide, narrow = SHAPE["intermediate_size"], SHAPE["hidden_size"]
    shapes = {f"self_attn.{name}_proj": (narrow, narrow) for name in "qkvo"}
    shapes |= {"mlp.gate_proj": (wide, narrow), "mlp.up_proj": (wide, narrow), "mlp.down_proj": (narrow, wide)}
    return {f"model.layers.{n}.{name}": shape for n in range(layers) for name, shape in shapes.items()}


def _write_base(layers: int) -> None:
    """Shards of at most 1 GB, one in memory at a time."""
    import torch
    from safetensors.torch import save_file
    from transformers import AutoTokenizer, LlamaConfig

    tokenizer = AutoTokenizer.from_pretrained(bundled.ensure_chat_model())
    tokenizer.save_pretrained(BASE)
    ends = {"bos_token_id": 1, "eos_token_id": tokenizer.eos_token_id}
    LlamaConfig(
        **SHAPE, **ends, num_hidden_layers=layers, dtype="bfloat16", architectures=["LlamaForCausalLM"]
    ).save_pretrained(BASE)
    width = SHAPE["hidden_size"]
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (SHAPE["vocab_size"], width)}
    shapes |= {f"{name}.weight": shape for name, shape in linear_layers(layers).items()}
    for norm in ("input_layernorm", "post_attention_layernorm"):
        shapes |= {f"model.layers.{n}.{norm}.weight": (width,) for n in range(layers)}
    shapes["model.norm.weight"] = (width,)
    shards = _shards(shapes)
    index: dict[str, Any] = {"metadata": {"total_size": sum(2 * math.prod(s) for s in shapes.values())}}
    index["weight_map"] = {}
    source = torch.Generator().manual_seed(42)
    for number, names in enumerate(shards, 1):
        file = f"model-{number:05}-of-{len(shards):05}.safetensors"
        save_file({name: _random(shapes[name], source) for name in names}, BASE / file, {"format": "pt"})
        index["weight_map"] |= dict.fromkeys(names, file)
    files.write_text(BASE / "model.safetensors.index.json", json.dumps(index))


def _random(shape: tuple[int, ...], source: Any) -> Any:
    import torch

    if len(shape) == 1:
        return torch.ones(shape, dtype=torch.bfloat16)
    return torch.empty(shape, dtype=torch.bfloat16).normal_(0, 0.02, generator=source)


def _shards(shapes: dict[str, tuple[int, ...]], limit: int = 10**9) -> list[list[str]]:
    found: list[list[str]] = [[]]
    held = 0
    for name, shape in shapes.items():
        size = 2 * math.prod(shape)
        if held + size > limit:
            found.append([])
            held = 0
        found[-1].append(name)
        held += size
    return found


def _write_adapter(layers: int) -> None:
    """A and B such that the adapter moves a weight by some five per cent of its size."""
    import torch
    from peft import LoraConfig
    from safetensors.torch import save_file

    source = torch.Generator().manual_seed(43)
    tensors = {}
    for name, (outputs, inputs) in linear_layers(layers).items():
        tensors[f"base_model.model.{name}.lora_A.weight"] = 0.0125 * torch.randn(RANK, inputs, generator=source)
        tensors[f"base_model.model.{name}.lora_B.weight"] = 0.01 * torch.randn(outputs, RANK, generator=source)
    targets = sorted({name.rpartition(".")[2] for name in linear_layers(1)})
    config = LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=targets, task_type="CAUSAL_LM")
    config.base_model_name_or_path = str(BASE)
    config.inference_mode = True
    config.save_pretrained(str(ADAPTER))
    save_file(tensors, ADAPTER / "adapter_model.safetensors", {"format": "pt"})


@click.command()
@click.option("--layers", default=24, show_default=True, type=click.IntRange(1), help="decoder layers of the base")
@click.option("--rounds", default=3, show_default=True, type=click.IntRange(1), help="runs of each way, in turn")
@click.option("--ways", default=",".join(WAYS), show_default=True, metavar="A,B", help="which to run")
def main(layers: int, rounds: int, ways: str) -> None:
    """Merge one adapter into one base, each way in turn, and compare the results with a fold in float32.

    Needs 7 GB of disk for the model and a merged copy.

    \b
    Example:
      bench/merging.py --layers 24 --rounds 3
    """
    chosen = ways.split(",")
    if strange := set(chosen) - set(WAYS):
        raise click.UsageError(f"--ways {sorted(strange)[0]}: expected some of {', '.join(WAYS)}.")
    prepare(layers)
    started = [
        measuring.Way(name, WAYS[name], measuring.python("merging_ways.py", name), {"HF_HUB_OFFLINE": "1"})
        for name in chosen
    ]
    measured = measuring.interleave(started, rounds, WORK / "log.txt")
    held = {file.name: file.stat().st_size for file in sorted(BASE.glob("*.safetensors"))}
    parameters = sum(math.prod(shape) for shape in linear_layers(layers).values()) + 2048 * (49152 + 2 * layers + 1)
    path = measuring.save(
        "merging",
        started,
        measured,
        parameters=parameters,
        layers=layers,
        rank=RANK,
        largest_shard_mb=round(max(held.values()) / 1e6),
    )
    click.echo(path, err=True)


if __name__ == "__main__":
    main()
