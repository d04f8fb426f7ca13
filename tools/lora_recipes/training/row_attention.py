"""Attention of rows laid end to end: each token attends to its own row alone, back to the row's first token.

On a GPU FlashAttention for rows of different length, which PyTorch brings along; on a CPU matrix products, since
PyTorch's fused kernel is slow there backwards (bench/attention.py measures it).
"""

import functools
import inspect
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional

NAME = "row_by_row"
"""The name under which transformers finds `attention`."""

_SHORT = 512
"""Tokens up to which a row's probabilities, [heads, tokens, tokens] a layer, are kept for its gradient on a CPU."""

_BLOCK = 192
"""Queries that are one matrix product on a CPU: a block leaves out the keys after it, but small products are slow."""


@dataclass(frozen=True)
class Segment:
    """Tokens of the sequence that attend to themselves, causally, and to a beginning that they share with others."""

    start: int
    length: int
    beginning: int = 0
    """Where the tokens before its first one stand."""
    before: int = 0
    """How many there are."""

    @property
    def own(self) -> slice:
        return slice(self.start, self.start + self.length)

    @property
    def shared(self) -> slice:
        return slice(self.beginning, self.beginning + self.before)

    def blocks(self) -> Iterator[tuple[int, int]]:
        """Its queries in blocks, (first, end) within the segment, the last block first."""
        count = max(1, round(self.length / _BLOCK))
        size = math.ceil(self.length / count)
        for first in reversed(range(0, self.length, size)):
            yield first, min(first + size, self.length)


def segments(row_parts: torch.Tensor) -> list[Segment]:
    """The sequence's segments in order, of `row_parts` [rows, 3] as padding_free.Collator makes them."""
    found: list[Segment] = []
    at = beginning = 0
    for own, before, first in row_parts.tolist():
        if first:
            found.append(Segment(at, before))
            beginning, at = at, at + before
        found.append(Segment(at, own, beginning, before))
        at += own
    return found


def register() -> None:
    """Make `attention` known to transformers."""
    from transformers import AttentionInterface, AttentionMaskInterface

    AttentionInterface.register(NAME, attention)
    AttentionMaskInterface.register(NAME, lambda *args, **kwargs: None)


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
    row_parts: torch.Tensor | None = None,
    row_ends: torch.Tensor | None = None,
    longest_row: int = 0,
    **others: Any,
) -> tuple[torch.Tensor, None]:
    """Causal attention within each row, for transformers' AttentionInterface.

    `query` is [1, heads, tokens, size], `key` and `value` [1, key heads, tokens, size]; gives [1, tokens, heads, size].
    Of padding_free.Collator are `row_parts` [rows, 3], `row_ends` [rows + 1] where rows share nothing, and
    `longest_row`; without them all tokens are one row.
    Raises ValueError for what it does not compute: soft-capped scores, sinks, dropout, and on a GPU shared tokens.
    """
    if any(others.get(name) is not None for name in ("softcap", "s_aux")) or dropout:
        raise ValueError("its attention has soft-capped scores, sinks or dropout")
    tokens = query.shape[2]
    if row_parts is None:
        row_parts, longest_row = torch.tensor([[tokens, 0, 0]], device=query.device), tokens
        row_ends = torch.tensor([0, tokens], dtype=torch.int32, device=query.device)
    query, key = query.to(value.dtype), key.to(value.dtype)  # under autocast a rotation leaves them in float32
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    window = sliding_window if sliding_window and sliding_window < longest_row else None
    q, k, v = (part[0].transpose(0, 1) for part in (query, key, value))
    if query.is_cuda and query.dtype in (torch.bfloat16, torch.float16):
        if row_ends is None:
            raise ValueError("its rows share tokens")
        return _flash(q, k, v, row_ends, longest_row, scale, window).unsqueeze(0), None
    parts = segments(row_parts)
    if longest_row <= _SHORT and query.device.type == "cpu":
        with torch.autocast("cpu", enabled=False):  # its backward pass is outside of autocast, too
            out = _Products.apply(q, k, v, scale, parts, window)
    else:
        out = torch.cat([fused(q[part.own], _keys(k, part), _keys(v, part), scale, window) for part in parts])
    return out.unsqueeze(0), None


def _keys(part: torch.Tensor, segment: Segment) -> torch.Tensor:
    """What a segment attends to, of [tokens, heads, size]."""
    own = part[segment.own]
    return torch.cat([part[segment.shared], own]) if segment.before else own


def _flash(q: Any, k: Any, v: Any, ends: torch.Tensor, longest: int, scale: float, window: int | None) -> torch.Tensor:
    """Of rows that share nothing: what they share would have to be fetched from the GPU in each layer."""
    from torch.nn.attention.varlen import varlen_attn

    more: dict[str, Any] = {}
    if (copies := q.shape[1] // k.shape[1]) > 1:
        if _takes_grouped_keys(varlen_attn):
            more = {"enable_gqa": True}
        else:
            k, v = (part.repeat_interleave(copies, dim=1) for part in (k, v))
    back = -1 if window is None else window - 1  # the tokens before the own one
    q, k, v = (part.contiguous() for part in (q, k, v))
    out = varlen_attn(q, k, v, ends, ends, longest, longest, scale=scale, window_size=(back, 0), **more)
    assert isinstance(out, torch.Tensor)
    return out


@functools.cache
def _takes_grouped_keys(kernel: Any) -> bool:
    """PyTorch's does from 2.12 on."""
    return "enable_gqa" in inspect.signature(kernel).parameters


def fused(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float, window: int | None) -> torch.Tensor:
    """PyTorch's own attention of one segment: [tokens, heads, size] and its keys' [tokens and before, heads, size]."""
    before = len(k) - len(q)
    causal = window is None and not before
    mask = None if causal else _bias(len(k), window, q.dtype)[before:].to(q.device)
    q, k, v = (part.transpose(0, 1).unsqueeze(0) for part in (q, k, v))
    out = functional.scaled_dot_product_attention(
        q, k, v, attn_mask=mask, is_causal=causal, scale=scale, enable_gqa=True
    )
    return out[0].transpose(0, 1)


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
        ctx: Any, query: Any, key: Any, value: Any, scale: float, parts: list[Segment], window: int | None
    ) -> torch.Tensor:
        """`query` [tokens, heads, size], `key` and `value` [tokens, key heads, size]; gives [tokens, heads, size]."""
        out, kept = torch.empty_like(query, memory_format=torch.contiguous_format), []
        bias, query = _bias(_SHORT, window, query.dtype), query * scale
        for part in parts:
            k, v = (_keys(side, part).transpose(0, 1).contiguous() for side in (key, value))
            kept += [k, v]
            for first, end in part.blocks():
                rows, seen = slice(part.start + first, part.start + end), part.before + end
                q = _grouped(query[rows], len(k))
                scores = torch.bmm(q, k[:, :seen].transpose(1, 2)).view(len(k), -1, end - first, seen)
                p = torch.softmax(scores.add_(bias[part.before + first : seen, :seen]), dim=-1).view(len(k), -1, seen)
                _ungroup(torch.bmm(p, v[:, :seen]), out[rows])
                kept += [q, p]
        ctx.save_for_backward(*kept)
        ctx.scale, ctx.parts, ctx.shapes = scale, parts, (query.shape, key.shape)
        return out

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> Any:
        kept = iter(ctx.saved_tensors)
        dq, dk, dv = (grad.new_empty(shape) for shape in (ctx.shapes[0], ctx.shapes[1], ctx.shapes[1]))
        for part in ctx.parts:
            k, v = next(kept), next(kept)
            gk = gv = None
            for first, end in part.blocks():
                q, p = next(kept), next(kept)
                rows, seen = slice(part.start + first, part.start + end), part.before + end
                do = _grouped(grad[rows], len(k))
                ds = torch._softmax_backward_data(torch.bmm(do, v[:, :seen].transpose(1, 2)), p, -1, p.dtype)
                _ungroup(torch.bmm(ds, k[:, :seen]), dq[rows])
                gv, gk = _added(gv, p, do), _added(gk, ds, q)
            for whole, found in ((dk, gk), (dv, gv)):
                assert found is not None
                whole[part.own] = found[:, part.before :].transpose(0, 1)
                if part.before:
                    whole[part.shared] += found[:, : part.before].transpose(0, 1)
        return dq.mul_(ctx.scale), dk, dv, None, None, None


def _added(total: torch.Tensor | None, left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """`total` and left transposed times right, for the keys that this block saw; the last block, the first, saw all."""
    if total is None:
        return torch.bmm(left.transpose(1, 2), right)
    total[:, : left.shape[2]].baddbmm_(left.transpose(1, 2), right)
    return total


def _grouped(part: torch.Tensor, groups: int) -> torch.Tensor:
    """[tokens, heads, size] -> [groups, heads a group · tokens, size]."""
    length, heads, size = part.shape
    return part.view(length, groups, heads // groups, size).permute(1, 2, 0, 3).reshape(groups, -1, size)


def _ungroup(part: torch.Tensor, into: torch.Tensor) -> None:
    """[groups, heads a group · tokens, size] written into [tokens, heads, size]."""
    length, heads, size = into.shape
    groups = part.shape[0]
    into.view(length, groups, -1, size).copy_(part.view(groups, heads // groups, length, size).permute(2, 0, 1, 3))
