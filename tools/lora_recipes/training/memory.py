"""Memory: what to lower when there is too little, and how a process on a CPU reuses it without growing.

Rows of many lengths make tensors of many sizes, which do not fit the gaps that earlier steps left: resident memory
grows with the steps (results/bench/notes.md, growth).
"""

import ctypes
import os
from pathlib import Path
from typing import Any

from lora_recipes.config.runfile import RunFile
from lora_recipes.support import processes

from transformers import TrainerCallback

_FIRST = 8
"""Optimizer steps whose largest resident memory counts as usual."""

_TOO_MUCH = 1.3
"""Times the usual resident memory; above it, free memory is returned to the kernel."""

_PRIMITIVES = "256"
"""Compiled products that oneDNN keeps, instead of 1,024: a step needs some tens, and each row length adds new ones."""


def for_training(run: RunFile) -> str:
    """What to lower in a run file that needs too much memory, and how to keep its global batch."""
    size, lower = run.micro_batch, []
    if size > 1:
        smaller = size // 2 if size % 2 == 0 else 1
        lower.append(
            f"micro_batch_size: {smaller} with gradient_accumulation_steps: {size * run.accumulation // smaller} "
            "(the same global batch)"
        )
    if not run.gradient_checkpointing:
        lower.append("gradient_checkpointing: true")
    lower.append(f"sequence_len below {run.sequence_len}")
    if not run.four_bit:
        lower.append("the qlora variant (adapter: qlora, load_in_4bit: true)")
    return f"{run.name}: set {', or '.join(lower)}."


def reuse() -> None:
    """Let a process on a CPU keep freed memory for its next tensors, instead of returning it to the kernel.

    It saves most of the page faults of a training step for some more memory. Does nothing without glibc.
    """
    if not processes.on_cpu():
        return
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", _PRIMITIVES)
    if not hasattr(libc := ctypes.CDLL(None), "mallopt"):
        return
    arenas, mapped, trim = -8, -4, -1  # M_ARENA_MAX, M_MMAP_MAX and M_TRIM_THRESHOLD of malloc.h
    for name, value in ((arenas, 1), (mapped, 0), (trim, 2**31 - 1)):
        libc.mallopt(name, value)


class TrimWhenGrown(TrainerCallback):
    """Returns free memory to the kernel when a run has grown beyond what its first steps needed."""

    def __init__(self) -> None:
        self.steps = self.usual = 0

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if not processes.on_cpu():
            return
        now, self.steps = resident(), self.steps + 1
        if self.steps <= _FIRST:
            self.usual = max(self.usual, now)
        elif now > _TOO_MUCH * self.usual:
            trim()


def resident() -> int:
    """Resident bytes of this process; 0 where there is no /proc."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 0


def trim() -> None:
    """Return free memory to the kernel, where the C library can."""
    if hasattr(libc := ctypes.CDLL(None), "malloc_trim"):
        libc.malloc_trim(0)
