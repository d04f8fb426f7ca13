"""Micro batches without padding: rows laid end to end, each attending to itself alone, positions from 0.

All layers but attention work token by token, so they see one long sequence and no token is spent on padding. Attention
takes each row by itself: on a GPU FlashAttention for rows of different length, which PyTorch brings along; on a CPU
matrix products, since PyTorch's fused kernel is slow there backwards (bench/attention.py measures it). The batches, and
so the gradients, are those of padded rows.
"""

import functools
from dataclasses import dataclass
from typing import Any

from lora_recipes import prompts, settings
from lora_recipes.runfile import RunFile

import click
import torch
from torch.nn import functional

ATTENTION = "row_by_row"
"""The name under which transformers finds `attention`."""

_SHORT = 512
"""Tokens up to which a row's probabilities, [heads, tokens, tokens] a layer, are kept for its gradient on a CPU."""

_ROUNDING = {torch.float32: 1e-4}
"""Largest relative difference, in the Euclidean norm, of logits that differ in nothing but the order of sums."""


@dataclass(frozen=True)
class Collator:
    """Lays the rows of a micro batch end to end."""

    def __call__(self, examples: list[dict[str, list[int]]]) -> dict[str, Any]:
        """`row_lengths` [rows], and `input_ids`, `labels` and `position_ids` [1, tokens of all rows], int64.

        The label of a row's first token is IGNORED: nothing comes before it.
        """
        lengths = [len(example["input_ids"]) for example in examples]
        return {
            "row_lengths": torch.tensor(lengths),  # first: transformers counts the rows of a batch by its first tensor
            "longest_row": max(lengths),
            "input_ids": torch.tensor([[token for example in examples for token in example["input_ids"]]]),
            "labels": torch.tensor(
                [[label for example in examples for label in (prompts.IGNORED, *example["labels"][1:])]]
            ),
            "position_ids": torch.cat([torch.arange(length) for length in lengths]).unsqueeze(0),
        }


def use(run: RunFile, model: Any) -> bool:
    """Switch a PEFT model to rows laid end to end; whether it was done.

    Not done where the run file names an attention other than sdpa, under DeepSpeed ZeRO-3 (whose weights are not
    there yet), and where a trial shows that a row does not get what it would get alone.
    """
    if run.config.get("attn_implementation") not in (None, "sdpa") or settings.zero_stage(run) == 3:
        return False
    base = model.get_base_model()
    before = base.config._attn_implementation
    try:
        if is_exact(model):
            return True
        reason = "another row changes them, or they differ from those alone"
    except (RuntimeError, ValueError, TypeError, NotImplementedError) as error:
        reason = " ".join(str(error).split())[:200]
    base.set_attn_implementation(before)
    click.echo(f"rows are padded: of rows laid end to end this model's logits are not shown exact: {reason}", err=True)
    return False


def is_exact(model: Any) -> bool:
    """Try it: leaves the model with attention row by row.

    A row's logits must not change by a bit when the row before it changes, and must be those of the row alone under
    the model's own attention but for rounding.
    """
    base = model.get_base_model()
    generator = torch.Generator().manual_seed(0)
    words = base.config.get_text_config().vocab_size
    before, other, row = (torch.randint(words, (n,), generator=generator).tolist() for n in (17, 17, 23))
    training = model.training
    model.eval()
    with torch.no_grad():
        alone = base(input_ids=torch.tensor([row], device=base.device), use_cache=False).logits[0]
        _register()
        base.set_attn_implementation(ATTENTION)
        after, unmoved = (_logits(base, [first, row])[-len(row) :] for first in (before, other))
    model.train(training)
    difference = (after.float() - alone.float()).norm() / alone.float().norm()
    return torch.equal(after, unmoved) and float(difference) <= _ROUNDING.get(base.dtype, 5e-2)


def _logits(base: Any, rows: list[list[int]]) -> torch.Tensor:
    batch = Collator()([{"input_ids": row, "labels": row} for row in rows])
    del batch["labels"]
    batch = {name: part.to(base.device) if torch.is_tensor(part) else part for name, part in batch.items()}
    logits: torch.Tensor = base(**batch, use_cache=False).logits[0]
    return logits


def _register() -> None:
    from transformers import AttentionInterface, AttentionMaskInterface

    AttentionInterface.register(ATTENTION, attention)
    AttentionMaskInterface.register(ATTENTION, lambda *args, **kwargs: None)


@torch.compiler.disable
def attention(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: Any = None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    row_lengths: torch.Tensor | None = None,
    longest_row: int = 0,
    **others: Any,
) -> tuple[torch.Tensor, None]:
    """Causal attention within each row, for transformers' AttentionInterface.

    `query` is [1, heads, tokens, size], `key` and `value` [1, key heads, tokens, size]; gives [1, tokens, heads, size].
    Without `row_lengths` [rows] all tokens are one row.
    Raises ValueError for what it does not compute: soft-capped scores, attention sinks, dropout.
    """
    if any(others.get(name) is not None for name in ("softcap", "s_aux")) or dropout:
        raise ValueError("its attention has soft-capped scores, sinks or dropout")
    if row_lengths is None:
        longest_row = query.shape[2]
        row_lengths = torch.tensor([longest_row], device=query.device)
    query, key = query.to(value.dtype), key.to(value.dtype)  # under autocast a rotation leaves them in float32
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    window = sliding_window if sliding_window and sliding_window < longest_row else None
    if query.is_cuda and query.dtype in (torch.bfloat16, torch.float16):
        return _flash(query, key, value, row_lengths, longest_row, scale, window), None
    lengths = row_lengths.tolist()
    if longest_row <= _SHORT and query.device.type == "cpu":
        rows = (part[0].transpose(0, 1) for part in (query, key, value))
        with torch.autocast("cpu", enabled=False):  # its backward pass is outside of autocast, too
            return _Products.apply(*rows, scale, lengths, window).unsqueeze(0), None
    parts = zip(*(part.split(lengths, dim=2) for part in (query, key, value)), strict=True)
    return torch.cat([_fused(q, k, v, scale, window) for q, k, v in parts], dim=2).transpose(1, 2), None


def _flash(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    row_lengths: torch.Tensor,
    longest: int,
    scale: float,
    window: int | None,
) -> torch.Tensor:
    from torch.nn.attention.varlen import varlen_attn

    ends = functional.pad(row_lengths.cumsum(0), (1, 0)).int()
    q, k, v = (part[0].transpose(0, 1).contiguous() for part in (query, key, value))
    back = -1 if window is None else window - 1  # the tokens before the own one
    out = varlen_attn(
        q,
        k,
        v,
        ends,
        ends,
        longest,
        longest,
        scale=scale,
        window_size=(back, 0),
        enable_gqa=len(key[0]) < len(query[0]),
    )
    assert isinstance(out, torch.Tensor)
    return out.unsqueeze(0)


def _fused(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float, window: int | None) -> torch.Tensor:
    mask = None if window is None else _bias(q.shape[2], window, q.dtype).to(q.device)
    return functional.scaled_dot_product_attention(
        q, k, v, attn_mask=mask, is_causal=mask is None, scale=scale, enable_gqa=True
    )


@functools.lru_cache(maxsize=8)
def _bias(length: int, window: int | None, dtype: torch.dtype) -> torch.Tensor:
    """[length, length]: 0 where a token attends, -inf elsewhere; itself and the window - 1 tokens before it."""
    back = torch.arange(length).unsqueeze(1) - torch.arange(length)
    seen = (back >= 0) & (back < (window or length))
    return torch.zeros(length, length, dtype=dtype).masked_fill_(~seen, float("-inf"))


class _Products(torch.autograd.Function):
    """Attention by matrix products; query heads that share a key head are one matrix."""

    @staticmethod
    def forward(
        ctx: Any, query: Any, key: Any, value: Any, scale: float, lengths: list[int], window: int | None
    ) -> torch.Tensor:
        """`query` [tokens, heads, size], `key` and `value` [tokens, key heads, size]; gives [tokens, heads, size]."""
        out, kept = torch.empty_like(query, memory_format=torch.contiguous_format), []
        bias = _bias(_SHORT, window, query.dtype)
        parts = zip(*(part.split(lengths) for part in (query * scale, key, value, out)), strict=True)
        for length, (q, k, v, o) in zip(lengths, parts, strict=True):
            groups = k.shape[1]
            q = _grouped(q, groups)
            k, v = k.permute(1, 2, 0).contiguous(), v.transpose(0, 1).contiguous()
            scores = torch.bmm(q, k).view(groups, -1, length, length).add_(bias[:length, :length])
            p = torch.softmax(scores, dim=-1).view(q.shape[0], -1, length)
            _ungroup(torch.bmm(p, v), o)
            kept += [q, k, v, p]
        ctx.save_for_backward(*kept)
        ctx.scale, ctx.lengths, ctx.shapes = scale, lengths, (query.shape, key.shape)
        return out

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> Any:
        kept = ctx.saved_tensors
        dq, dk, dv = (grad.new_empty(shape) for shape in (ctx.shapes[0], ctx.shapes[1], ctx.shapes[1]))
        parts = zip(*(part.split(ctx.lengths) for part in (grad, dq, dk, dv)), strict=True)
        for number, (do, gq, gk, gv) in enumerate(parts):
            q, k, v, p = kept[4 * number : 4 * number + 4]
            do = _grouped(do, q.shape[0])
            gv.copy_(torch.bmm(p.transpose(1, 2), do).transpose(0, 1))
            ds = torch._softmax_backward_data(torch.bmm(do, v.transpose(1, 2)), p, -1, p.dtype)
            _ungroup(torch.bmm(ds, k.transpose(1, 2)), gq)
            gk.copy_(torch.bmm(ds.transpose(1, 2), q).transpose(0, 1))
        return dq.mul_(ctx.scale), dk, dv, None, None, None


def _grouped(part: torch.Tensor, groups: int) -> torch.Tensor:
    """[tokens, heads, size] -> [groups, heads a group · tokens, size]."""
    length, heads, size = part.shape
    return part.view(length, groups, heads // groups, size).permute(1, 2, 0, 3).reshape(groups, -1, size)


def _ungroup(part: torch.Tensor, into: torch.Tensor) -> None:
    """[groups, heads a group · tokens, size] written into [tokens, heads, size]."""
    length, heads, size = into.shape
    groups = part.shape[0]
    into.view(length, groups, -1, size).copy_(part.view(groups, heads // groups, length, size).permute(2, 0, 1, 3))
