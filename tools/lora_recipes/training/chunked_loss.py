"""Cross-entropy of a frozen output layer, chunk by chunk: its logits are never all in memory.

Only the hidden states get a gradient. It is computed with each chunk in the forward pass, and the chunk's logits are
dropped (the idea of Liger Kernel's fused linear cross-entropy, https://arxiv.org/abs/2410.10989). PyTorch 2.13's own
`linear_cross_entropy` sums the loss in the weights' dtype, which is too coarse in bf16.
"""

from typing import Any

import torch
from torch.nn import functional

_LOGITS = 2**26
"""Logits in memory at a time: 256 MiB in float32, 335 tokens of Phi-4-mini's 200,064 words."""


def bypass_lm_head(model: Any) -> torch.nn.Linear | None:
    """Take the output layer out of a PEFT model's forward pass, which then gives hidden states as `logits`.

    Gives the layer. None, with the model unchanged, where the layer is trained, is no plain linear one, or the model
    changes the logits after it by soft-capping or scaling (tried on a few tokens).
    """
    base = model.get_base_model()
    head = base.get_output_embeddings()
    if type(head) is not torch.nn.Linear or head.weight.requires_grad:
        return None
    ids = torch.arange(1, 8, device=base.device).unsqueeze(0)
    training = model.training
    model.eval()
    with torch.no_grad():
        expected = _first(base, ids)
        head.forward = _unchanged  # type: ignore[method-assign, assignment]
        found = functional.linear(_first(base, ids), head.weight, head.bias)
    model.train(training)
    if found.shape == expected.shape and torch.equal(found, expected):
        return head
    del head.forward
    return None


def _first(base: Any, ids: torch.Tensor) -> torch.Tensor:
    logits: torch.Tensor = base(input_ids=ids, use_cache=False).logits
    return logits


def _unchanged(hidden: torch.Tensor) -> torch.Tensor:
    return hidden


def loss(hidden: torch.Tensor, head: torch.nn.Linear, targets: torch.Tensor) -> torch.Tensor:
    """Mean cross-entropy in nats of `targets` [tokens] under the head of `hidden` [tokens, size]; a float32 scalar."""
    mean: torch.Tensor = _HeadLoss.apply(hidden, head.weight, head.bias, targets)
    return mean


class _HeadLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Any, weight: Any, bias: Any, targets: Any) -> torch.Tensor:
        total = torch.zeros((), device=hidden.device)
        gradient = torch.empty(hidden.shape, device=hidden.device) if hidden.requires_grad else None
        step = max(1, _LOGITS // len(weight))
        for start in range(0, len(targets), step):
            part = slice(start, start + step)
            wanted = targets[part].unsqueeze(1)
            logits = functional.linear(hidden[part].to(weight.dtype), weight, bias)
            log_p = torch.log_softmax(logits, dim=-1, dtype=torch.float32)
            total -= log_p.gather(1, wanted).sum()
            if gradient is not None:
                error = log_p.exp_().scatter_add_(1, wanted, log_p.new_full(wanted.shape, -1.0))
                gradient[part] = error.to(weight.dtype) @ weight
        ctx.gradient = gradient.div_(len(targets)) if gradient is not None else None
        ctx.dtype = hidden.dtype
        return total / len(targets)

    @staticmethod
    def backward(ctx: Any, scale: torch.Tensor) -> Any:
        return (ctx.gradient * scale).to(ctx.dtype), None, None, None
