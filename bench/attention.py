#!/usr/bin/env python3
"""Attention of a micro batch on a CPU, forwards and backwards: matrix products, PyTorch's fused kernel, padding."""

import os
import time
from collections.abc import Callable
from typing import Any

from lora_recipes.support import libraries

import click
import measuring

WAYS = {
    "padded": "PyTorch's fused kernel on rows padded to the longest, as transformers calls it",
    "fused": "PyTorch's fused kernel, row by row",
    "products": "matrix products, row by row: what the plain trainer does",
}


@click.command()
@click.option("--rounds", default=15, show_default=True, type=click.IntRange(1), help="runs of each way, in turn")
@click.option("--dtype", default="bfloat16", show_default=True, type=click.Choice(["bfloat16", "float32"]))
@click.option("--lengths", default="120,90,310,200,256,180,400,94", show_default=True, help="tokens of the rows")
def main(rounds: int, dtype: str, lengths: str) -> None:
    """Time one layer's attention of SmolLM2 (9 heads, 3 key heads of 64) over eight rows.

    \b
    Example:
      bench/attention.py --rounds 5
    """
    libraries.quiet()
    import torch

    torch.set_num_threads(os.cpu_count() or 1)
    sizes = [int(length) for length in lengths.split(",")]
    ways = _ways(sizes, getattr(torch, dtype))
    measured: dict[str, list[dict[str, Any]]] = {name: [] for name in ways}
    for number in range(rounds + 1):
        for name, run in ways.items():
            load, begun = os.getloadavg()[0], time.perf_counter()
            run()
            if number:  # the first is for warming up
                seconds = time.perf_counter() - begun
                measured[name].append({"milliseconds": round(seconds * 1000, 2), "load_before": round(load, 1)})
    contenders = [measuring.Way(name, words, measuring.python("attention.py")) for name, words in WAYS.items()]
    click.echo(measuring.save("attention", contenders, measured, dtype=dtype, lengths=sizes), err=True)
    for name, runs in measured.items():
        click.echo(f"{name:<10}{measuring.medians(runs)['milliseconds']:8.2f} ms")


def _ways(sizes: list[int], dtype: Any) -> dict[str, Callable[[], None]]:
    from lora_recipes.training import row_attention

    import torch

    tokens, longest = sum(sizes), max(sizes)
    counts = torch.tensor(sizes)
    row_parts = torch.tensor([[size, 0, 0] for size in sizes])

    def made(rows: int, length: int, heads: int) -> Any:
        return torch.randn(rows, length, heads, 64, dtype=dtype).transpose(1, 2).requires_grad_()

    packed = [made(1, tokens, heads) for heads in (9, 3, 3)]
    batch = [made(len(sizes), longest, heads) for heads in (9, 3, 3)]
    keys = torch.arange(longest) < counts.unsqueeze(1)
    mask = (torch.ones(longest, longest).tril().bool() & keys[:, None, None]) | torch.eye(longest).bool()

    def products() -> None:
        out, _ = row_attention.attention(None, *packed, row_parts=row_parts, longest_row=longest)
        out.backward(torch.ones_like(out))

    def fused() -> None:
        parts = zip(*(part[0].transpose(0, 1).split(sizes) for part in packed), strict=True)
        out = torch.cat([row_attention.fused(q, k, v, 0.125, None) for q, k, v in parts])
        out.backward(torch.ones_like(out))

    def padded() -> None:
        q, k, v = batch
        out = torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=True)
        out.backward(torch.ones_like(out))

    return {"padded": padded, "fused": fused, "products": products}


if __name__ == "__main__":
    main()
