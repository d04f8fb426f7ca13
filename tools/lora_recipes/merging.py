"""Folding a LoRA adapter into its base model, one weight in memory at a time.

A weight becomes W + s·B·A, summed in float32 and rounded once to the dtype in which the base stores
it; s is alpha/r, or alpha/√r for rsLoRA (https://arxiv.org/abs/2312.03732). DoRA then scales each row
to its trained magnitude m: m·(W + s·B·A)/‖W + s·B·A‖ (https://arxiv.org/abs/2402.09353, eq. 5).

QLoRA trains on a base whose linear layers are rounded to NF4, so W is that rounded weight when the
adapter is merged onto the quantized base. Embeddings, norms and lm_head are not rounded in training
and not here.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lora_recipes import models, shards
from lora_recipes.mergeplan import Change, Plan
from lora_recipes.runfile import RunFile
from lora_recipes.shards import Stored

_BASELINE = 750 * 2**20
"""Resident bytes of a process that has imported torch, transformers and peft."""


def merged_weight(plan: Plan, entry: Stored) -> Any:
    """A weight of the merged model, in the dtype of the base."""
    change = plan.changes.get(entry.name, Change())
    weight = base_weight(plan, entry).float()
    if change.lora_a and change.lora_b:
        weight += change.scale * (shards.read(change.lora_b).float() @ shards.read(change.lora_a).float())
    if change.magnitude:
        weight *= (shards.read(change.magnitude).float() / weight.norm(dim=1)).unsqueeze(1)
    return weight.to(shards.dtype_of(entry))


def base_weight(plan: Plan, entry: Stored) -> Any:
    """The weight that A and B are added to: the base's or the adapter's own, rounded to NF4 as in training."""
    change = plan.changes.get(entry.name, Change())
    weight = shards.read(change.value or entry)
    return nf4(weight.to(plan.quantized_from)) if entry.name in plan.quantized else weight


def nf4(weight: Any) -> Any:
    """A weight after 4-bit NormalFloat with double quantization and back (https://arxiv.org/abs/2305.14314)."""
    import bitsandbytes.functional as bnb
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    codes, state = bnb.quantize_4bit(weight.to(device), blocksize=64, compress_statistics=True, quant_type="nf4")
    return bnb.dequantize_4bit(codes, state).cpu()


def write(run: RunFile, plan: Plan, folder: Path, step: Callable[[], None]) -> dict[str, str]:
    """Write the merged model with its configuration and tokenizer; `step` is called once a weight.

    Returns the sha256 of each safetensors file as it was meant to be written.
    """
    rewritten = {entry.name for entry in plan.rewritten}

    def data(entry: Stored) -> Any:
        step()
        if entry.name in rewritten:
            return shards.bytes_of(merged_weight(plan, entry))
        return shards.read_bytes(entry)

    hashes = {name: shards.write(folder / name, entries, data) for name, entries in plan.files.items()}
    if len(plan.files) > 1:
        index = {
            "metadata": {"total_size": sum(entry.size for entry in plan.weights)},
            "weight_map": {entry.name: name for name, entries in plan.files.items() for entry in entries},
        }
        _write_json(folder / shards.INDEX, index)
    _write_companions(run, plan, folder)
    return hashes


def _write_companions(run: RunFile, plan: Plan, folder: Path) -> None:
    """Configuration, generation settings and tokenizer; an end token of the run file ends answers too."""
    tokenizer = models.load_tokenizer(run)
    tokenizer.save_pretrained(folder)
    for name in ("config.json", "generation_config.json"):
        if not (plan.base / name).is_file():
            continue
        settings = shards.read_json(plan.base / name)
        settings.pop("quantization_config", None)
        if plan.untied and name == "config.json":
            settings["tie_word_embeddings"] = False
        ends = settings.get("eos_token_id")
        ends = ends if isinstance(ends, list) else [] if ends is None else [ends]
        if "eos_token" in (run.config.get("special_tokens") or {}) and tokenizer.eos_token_id not in ends:
            settings["eos_token_id"] = [tokenizer.eos_token_id, *ends]
        _write_json(folder / name, settings)


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def peak_memory(plan: Plan) -> tuple[int, int]:
    """Estimated bytes of the largest resident size while merging, and while verifying.

    Merging holds one weight: W, its product and their sum in float32 beside what is read and written.
    Verifying holds the model in float32, beside the mapped file and some 0.3 GB of distributions.
    """
    largest = max((14 * entry.count for entry in plan.rewritten), default=0)
    unchanged = max((entry.size for entry in plan.weights), default=0)
    count = sum(entry.count for entry in plan.weights)
    return _BASELINE + max(largest, unchanged), _BASELINE + 300_000_000 + 6 * count
