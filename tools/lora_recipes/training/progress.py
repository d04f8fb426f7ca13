"""How far training is, a line a log entry, and how fast it was: tokens a second, and the share of a GPU's peak."""

import re
import time
from typing import Any

from lora_recipes.support import processes

import click
import torch
from transformers import TrainerCallback

_PEAKS = (
    ("H200 NVL", 835e12),
    ("H200", 989e12),
    ("H100 NVL", 835e12),
    ("H100 PCIe", 756e12),
    ("H100", 989e12),
    ("A100", 312e12),
    ("L40S", 362e12),
    ("A40", 149.7e12),
    ("A10", 125e12),
    ("L4", 121e12),
    ("RTX 4090", 165.2e12),
    ("RTX 3090", 71e12),
)
"""FLOP/s of dense bf16 products summed in float32, by words of the card's name, of two that fit the first.

From NVIDIA's data sheets and, for the two RTX, the whitepapers of the Ada and Ampere GA102 architectures. Where a data
sheet gives the figure "with sparsity", half of it.
"""


class StepLines(TrainerCallback):
    """`step 12/61  loss 2.314  lr 4.9e-04  3.2 min left` for transformers' Trainer."""

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.begun, self.first = time.monotonic(), state.global_step

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        if not state.is_world_process_zero or not logs:
            return
        words = [f"step {state.global_step}/{state.max_steps}"]
        if "loss" in logs:
            words += [f"loss {float(logs['loss']):.3f}", f"lr {float(logs['learning_rate']):.1e}", self._left(state)]
        elif "eval_loss" in logs:
            words += [f"evaluation loss {float(logs['eval_loss']):.3f}"]
        else:
            return
        click.echo("  ".join(words), err=True)

    def _left(self, state: Any) -> str:
        done = max(1, state.global_step - self.first)
        seconds = (time.monotonic() - self.begun) / done * (state.max_steps - state.global_step)
        return f"{seconds / 60:.1f} min left" if seconds > 90 else f"{seconds:.0f} s left"


class Speed(TrainerCallback):
    """Seconds and epochs of this process's optimizer steps after the first, which compiles and loads kernels.

    Evaluation and checkpoints are left out, waiting for the next batch is not.
    """

    def __init__(self) -> None:
        self.seconds = self.epochs = 0.0
        self._mark: float | None = None
        self._epoch = 0.0

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if (
            control.should_evaluate or control.should_save or control.should_training_stop
        ) and torch.cuda.is_available():
            torch.cuda.synchronize()  # what is still under way belongs to the steps
        now = time.monotonic()
        if self._mark is not None:
            self.seconds += now - self._mark
            self.epochs += state.epoch - self._epoch
        self._mark, self._epoch = now, state.epoch

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self._mark is not None:  # None: before the first step
            self._mark = time.monotonic()

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._mark = time.monotonic()

    def metrics(self, trainer: Any, tokens: int, trained: int) -> dict[str, float]:
        """`tokens_per_second` of all processes, and `flop_share` in bf16 on a card that is known; of an epoch's tokens.

        Padding is not counted. Empty after fewer than two steps.
        """
        if not self.seconds:
            return {}
        found = {"tokens_per_second": round(self.epochs * tokens / self.seconds, 1)}
        peak = peak_rate(torch.cuda.get_device_name()) if trainer.args.bf16 and torch.cuda.is_available() else None
        if peak:
            rate = self.epochs * flops(trainer.model, tokens, trained) / self.seconds
            found["flop_share"] = round(rate / (peak * processes.world_size()), 4)
        return found


def peak_rate(card: str) -> float | None:
    """FLOP/s in bf16 of a card by the name that CUDA gives it; None for one that is not in the table."""
    words = set(re.split(r"[\s-]+", card))
    return next((rate for name, rate in _PEAKS if set(name.split()) <= words), None)


def flops(model: Any, tokens: int, trained: int) -> int:
    """Floating-point operations of training a PEFT model on so many tokens, `trained` of them with a label.

    4 a frozen weight and token: 2 forwards, and 2 backwards for the activations, none for the weight (the usual 6 of a
    trained one, Kaplan et al. 2020, arXiv:2001.08361, section 2.1, less 2). The output head counts for tokens with a
    label. Left out are the adapter, attention scores, the embedding, which is looked up, and what is computed twice.
    """
    learned, everything = model.get_nb_trainable_parameters()
    base = model.get_base_model()
    embedding, head = base.get_input_embeddings().weight, base.get_output_embeddings().weight
    tables = {id(weight): getattr(weight, "ds_numel", weight.numel()) for weight in (embedding, head)}  # tied: one
    layers = everything - learned - sum(tables.values())
    return 4 * (layers * tokens + tables[id(head)] * trained)
