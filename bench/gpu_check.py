#!/usr/bin/env python3
"""Whether rows laid end to end are exact on this machine: attention against PyTorch's own, logits against a row alone.

Prints the relative errors, in the Euclidean norm, as JSON; takes a minute on a GPU, and runs on a CPU too.
"""

import json
from typing import Any

import click
import gpu_models

SHAPES = {
    "phi4-mini": (24, 8, 128, None),
    "llama3.1-8b": (32, 8, 128, None),
    "gemma3": (4, 1, 256, 64),
    "phi1.5": (32, 32, 64, None),
}
"""Heads, key heads, size of a head, and a sliding window shorter than the rows."""

ROWS = (100, 200)
"""Tokens."""

WORSE = 2.0
"""Times the error of PyTorch's own attention in the same dtype that ours may have."""


def attention(heads: int, key_heads: int, size: int, window: int | None, device: str, dtype: Any) -> dict[str, float]:
    """Largest relative error of output and gradients, `ours` and `theirs`: scaled_dot_product_attention with an
    explicit mask. Both are compared with the latter in float64.
    """
    import torch

    generator = torch.Generator().manual_seed(0)
    sides = [torch.randn(1, n, sum(ROWS), size, generator=generator) for n in (heads, key_heads, key_heads)]
    upstream = torch.randn(1, sum(ROWS), heads, size, generator=generator)

    def of(run: Any, dtype: Any) -> list[Any]:
        q, k, v = (side.to(device, dtype, copy=True).requires_grad_() for side in sides)
        out = run(q, k, v)
        out.backward(upstream.to(device, dtype))
        return [out.detach(), q.grad, k.grad, v.grad]

    masked = _masked(window, device)
    exact = of(masked, torch.float64)
    ours, theirs = of(lambda q, k, v: _row_by_row(q, k, v, window), dtype), of(masked, dtype)
    return {
        name: max(_error(one, true) for one, true in zip(found, exact, strict=True))
        for name, found in (("ours", ours), ("theirs", theirs))
    }


def _row_by_row(q: Any, k: Any, v: Any, window: int | None) -> Any:
    from lora_recipes.training import padding_free, row_attention

    batch = padding_free.Collator()([{"input_ids": [1] * length, "labels": [1] * length} for length in ROWS])
    told = {name: batch[name] for name in ("row_parts", "row_ends", "longest_row")}
    told = {name: part.to(q.device) if hasattr(part, "to") else part for name, part in told.items()}
    return row_attention.attention(None, q, k, v, sliding_window=window, **told)[0]


def _masked(window: int | None, device: str) -> Any:
    import torch

    row = torch.repeat_interleave(torch.arange(len(ROWS)), torch.tensor(ROWS))
    back = torch.arange(len(row)).unsqueeze(1) - torch.arange(len(row))
    mask = (row.unsqueeze(1) == row) & (back >= 0) & (back < (window or len(row)))

    def run(q: Any, k: Any, v: Any) -> Any:
        found = torch.nn.functional.scaled_dot_product_attention(
            q, k, v, attn_mask=mask.to(device), enable_gqa=k.shape[1] < q.shape[1]
        )
        return found.transpose(1, 2)

    return run


def _error(found: Any, expected: Any) -> float:
    return float((found.double() - expected.double()).norm() / expected.double().norm())


def exactness(shape: gpu_models.Shape, device: str) -> dict[str, float]:
    """Relative errors of a row's logits, against the row alone: `noise` beside another row under the model's own
    attention, `laid` behind another row under ours. `exact` is 1 where the trainer's trial finds the rows exact.
    """
    from lora_recipes.training import padding_free

    import torch

    model = gpu_models.made(shape, device).eval()
    (first, row) = gpu_models.examples([(0, length) for length in (17, 30)], shape.dimensions["vocab_size"])
    both = padding_free.Collator()([first, row])
    laid = {name: both[name] for name in ("input_ids", "position_ids", "row_parts", "row_ends", "longest_row")}
    ids = torch.tensor([row["input_ids"] + first["input_ids"], first["input_ids"] + row["input_ids"]])

    def logits(**inputs: Any) -> Any:
        inputs = {name: part.to(device) if torch.is_tensor(part) else part for name, part in inputs.items()}
        return model(**inputs, use_cache=False).logits

    with torch.no_grad():
        alone = logits(input_ids=torch.tensor([row["input_ids"]]))[0, -9:]
        beside = logits(input_ids=ids)[0, 21:30]
        exact = padding_free.is_exact(model)  # which also switches the attention
        behind = logits(**laid)[0, -9:]
    return {"noise": _error(beside, alone), "laid": _error(behind, alone), "exact": float(exact)}


def check(device: str, dtype: Any, shapes: dict[str, gpu_models.Shape]) -> dict[str, float]:
    """All figures under one name each. Raises click.ClickException for those that are too large."""
    found: dict[str, float] = {}
    bad = []
    for name, (heads, key_heads, size, window) in SHAPES.items():
        errors = attention(heads, key_heads, size, window, device, dtype)
        found |= {f"{name}_{whose}": float(f"{error:.3g}") for whose, error in errors.items()}
        if not errors["ours"] <= WORSE * errors["theirs"]:
            bad.append(f"attention of {name}: {errors['ours']:.2g} where PyTorch's own has {errors['theirs']:.2g}")
    for name, shape in shapes.items():
        trial = exactness(shape, device)
        found |= {f"{name}_{what}": float(f"{value:.3g}") for what, value in trial.items()}
        if not trial["exact"]:
            bad.append(f"rows of {name} laid end to end are not exact")
    if bad:
        raise click.ClickException(f"{'; '.join(bad)} (all: {json.dumps(found)})")
    return found


@click.command()
def main() -> None:
    """Check the plain trainer's attention and its trial of exactness on the GPU, or on the CPU where there is none.

    \b
    Example:
      bench/gpu_check.py
    """
    import torch

    on_gpu = torch.cuda.is_available()
    shapes = {"phi4-mini": gpu_models.SHAPES["phi4-mini"]} if on_gpu else {}  # too large for most CPUs
    dtype = torch.bfloat16 if on_gpu else torch.float32
    print(json.dumps(check("cuda" if on_gpu else "cpu", dtype, shapes)))


if __name__ == "__main__":
    main()
