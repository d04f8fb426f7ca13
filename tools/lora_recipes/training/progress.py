"""Training progress on stderr: a line a log entry, with the time that is left."""

import time
from typing import Any

import click
from transformers import TrainerCallback


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
