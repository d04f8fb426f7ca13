"""What a training run's times amount to: steady tokens a second, and the share of the processor's matrix rate."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from lora_recipes.config.runfile import RunFile

WARM_UP_STEPS = 2
"""Compilers work in the first steps: one for the first shape, one more when the shapes turn out to vary."""


@dataclass(frozen=True)
class Flops:
    """Floating-point operations (a multiplication and an addition are two) of LoRA training.

    A frozen weight costs 2 a token in the forward pass and 2 in the backward pass, which goes through
    it to the activations but makes no gradient for it; an adapter's weight costs 2 more for its gradient
    (the usual 6 of a trained weight, Kaplan et al. 2020, arXiv:2001.08361, section 2.1, less the frozen 2).
    The output head counts for tokens with a label only: the others need no logits. Attention scores,
    norms and element-wise work are left out, and so is what a way computes in excess (padding, logits
    that nobody needs, activations computed twice), so that the shares of two ways compare as their speeds do.
    """

    linear: int
    """Weights of the frozen linear layers without the head."""
    head: int
    """Weights of the output head, hidden size times vocabulary."""
    lora: int
    """Weights of the adapter."""

    def of(self, tokens: int, trained: int) -> int:
        """For so many tokens, `trained` of them with a label."""
        return (4 * self.linear + 6 * self.lora) * tokens + 4 * self.head * trained


def flops(run: RunFile) -> Flops:
    """Counted on the run file's model without its weights."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(run.model()))
    head = model.get_output_embeddings()
    layers = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and module is not head
    }
    adapted = [layers[name] for name in layers if name.rpartition(".")[2] in run.config["lora_target_modules"]]
    return Flops(
        linear=sum(layer.weight.numel() for layer in layers.values()),
        head=head.weight.numel(),
        lora=sum(run.config["lora_r"] * (layer.in_features + layer.out_features) for layer in adapted),
    )


def steady(times: Sequence[float], seen: Sequence[float] | None, tokens: int) -> float | None:
    """Tokens a second over the steps after WARM_UP_STEPS; None where there are too few of them.

    `times` are the ends of the steps in seconds. `seen` counts tokens up to each step in any unit (some
    trainers count padding), and shares `tokens` out; without it each step is taken to have equally many.
    """
    if len(times) <= WARM_UP_STEPS:
        return None
    counted = seen if seen is not None and len(seen) == len(times) else range(1, len(times) + 1)
    share = 1 - counted[WARM_UP_STEPS - 1] / counted[-1]
    return tokens * share / (times[-1] - times[WARM_UP_STEPS - 1])


def of_model(model: Any) -> Flops:
    """Counted on a PEFT model."""
    import torch

    head = model.get_base_model().get_output_embeddings()
    layers = [module for module in model.modules() if isinstance(module, torch.nn.Linear) and module is not head]
    return Flops(
        linear=sum(layer.weight.numel() for layer in layers if not layer.weight.requires_grad),
        head=head.weight.numel(),
        lora=sum(layer.weight.numel() for layer in layers if layer.weight.requires_grad),
    )


def matrix_rate(seconds: float = 2.0, size: int = 2048, device: str = "cpu", dtype: str = "bfloat16") -> float:
    """FLOP/s of square matrix products on all cores, or on a GPU, warm."""
    import torch

    left, right = (torch.randn(size, size, dtype=getattr(torch, dtype), device=device) for _ in range(2))

    def finish() -> None:
        if device != "cpu":
            torch.accelerator.synchronize()

    torch.mm(left, right)
    finish()
    begun, products = time.perf_counter(), 0
    while time.perf_counter() - begun < seconds:
        torch.mm(left, right)
        finish()
        products += 1
    return 2 * size**3 * products / (time.perf_counter() - begun)


def add_shares(measured: dict[str, list[dict[str, Any]]], flops_per_token: float) -> None:
    """Put rate_share and steady_rate_share beside the speeds: of the matrix rate of the same round."""
    for name, rounds in measured.items():
        for one, matrix in zip(rounds, measured["matmul"], strict=False):
            for speed, share in (
                ("tokens_per_second", "rate_share"),
                ("steady_tokens_per_second", "steady_rate_share"),
            ):
                if name != "matmul" and one.get(speed):
                    one[share] = round(one[speed] * flops_per_token / (matrix["gflops"] * 1e9), 4)
