"""Grouped-query attention on a CPU without a copy of the keys and values for every query head that shares them.

transformers' SDPA makes these copies whenever there is a mask, since PyTorch's fused kernels for GPUs take either; the
one for CPUs takes both, and gives the same bits. A step that answers many questions copies the whole cache otherwise:
a tenth of the time for 24 questions (figures in decoding); of log-likelihoods, whose passes have many columns, nothing.
"""

from typing import Any

import torch
from torch.nn import functional


def use() -> None:
    """Let every model of this process that has SDPA take it: under its name, which some models ask for."""
    from transformers import AttentionInterface

    AttentionInterface.register("sdpa", attention)


def attention(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **options: Any,
) -> tuple[torch.Tensor, None]:
    """Attention [batch, tokens, heads, head size] of query [batch, heads, tokens, head size], key and value alike with
    fewer heads, under a mask; without one, with a bias and on a GPU it is transformers' own."""
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    plain = attention_mask is None or options.get("position_bias") is not None
    if plain or query.device.type != "cpu":
        return sdpa_attention_forward(module, query, key, value, attention_mask, dropout, scaling, **options)
    output = functional.scaled_dot_product_attention(
        query, key, value, attn_mask=attention_mask, dropout_p=dropout, scale=scaling, enable_gqa=True
    )
    return output.transpose(1, 2).contiguous(), None
