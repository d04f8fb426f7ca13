"""How many questions are answered at once: as many as the free memory holds, up to where more is no faster."""

from pathlib import Path
from typing import Any

from lora_recipes.data.questions import Question
from lora_recipes.inference import decoding

_SHARE = 0.7
"""Of the free memory; the rest is for what allocators keep and for other processes."""

_MOST_ON_CPU, _MOST_ON_GPU = 128, 256


def by_memory(model: Any, asked: list[Question], max_new_tokens: int) -> int:
    """A power of two: batches stay the same for any free memory between two of them, and halve evenly."""
    most = _MOST_ON_CPU if model.device.type == "cpu" else _MOST_ON_GPU
    width = max(len(one.prompt_ids) + max(max_new_tokens, len(one.reference_ids)) for one in asked)
    each, once = _bytes(model, width)
    fitting = max(1, int((_SHARE * free(model.device) - once) // each))
    return min(most, 1 << (fitting.bit_length() - 1))


def _bytes(model: Any, width: int) -> tuple[int, int]:
    """Bytes per question, and those of one pass over a part of the prompts: an estimate from the configuration."""
    config = model.config.get_text_config(decoder=True)
    heads = config.num_attention_heads
    kept = getattr(config, "num_key_value_heads", None) or heads
    head = getattr(config, "head_dim", None) or config.hidden_size // heads
    size = model.dtype.itemsize
    cache = 2 * config.num_hidden_layers * kept * head * width * size
    inner = getattr(config, "intermediate_size", None) or 4 * config.hidden_size
    # Twice: the cache is copied where rows leave. Activations: the gated MLP in float32 and its halves.
    each = 2 * cache + config.vocab_size * (size + 4)
    return each, decoding.TOKENS * (config.vocab_size * size + 4 * (3 * inner + 8 * config.hidden_size))


def free(device: Any) -> int:
    """Bytes that can still be taken: of the accelerator, or of the machine within this process's own limit."""
    import torch

    if device.type != "cpu":
        return int(torch.accelerator.get_memory_info(device)[0])
    import psutil

    return min([psutil.virtual_memory().available, *_left_in_group()])


def _left_in_group(folder: Path = Path("/sys/fs/cgroup")) -> list[int]:
    """What a container's limit leaves; empty without one."""
    try:
        limit, used = ((folder / f"memory.{name}").read_text().strip() for name in ("max", "current"))
        return [] if limit == "max" else [max(0, int(limit) - int(used))]
    except (OSError, ValueError):
        return []
