"""One base model in memory, and the adapters that are switched on it in turn."""

import contextlib
import gc
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lora_recipes.inference import grouped_query
from lora_recipes.models import adapter_settings, loading
from lora_recipes.results.systems import System


@dataclass(frozen=True)
class Loaded:
    """What tells one base model in memory from another: systems in which it is equal share it."""

    model: str
    dtype: str
    in_4bit: bool
    """A base that is measured itself is loaded in full precision, whatever its run file says."""
    attention: str | None
    own: Path | None
    """The adapter that this base is for alone: one that changes its weights, which are the others' as well."""


def loaded(system: System) -> Loaded:
    run = system.run
    own = system.adapter if system.adapter and adapter_settings.changes_base(system.adapter) else None
    return Loaded(run.model(), run.dtype_name, system.adapter is not None and run.four_bit, run.attention, own)


def groups(systems: Iterable[System]) -> list[list[System]]:
    """The systems that share a base, in the order of the first of each."""
    found: dict[Loaded, list[System]] = {}
    for system in systems:
        found.setdefault(loaded(system), []).append(system)
    return list(found.values())


def release() -> None:
    """Free the memory of a base that is no longer referred to, before the next is loaded and its batches are sized."""
    import torch

    gc.collect()
    torch.cuda.empty_cache()  # does nothing where CUDA is not in use


class SharedBase:
    """The base model of some systems with all of their adapters; one at a time is active.

    `base` is the model itself, without PEFT's wrapper; the adapter that is active acts through it too.
    """

    def __init__(self, systems: list[System]) -> None:
        self.base = self.model = loading.load_base(systems[0].run, quantized=loaded(systems[0]).in_4bit)
        grouped_query.use()
        self._adapters: dict[System, str] = {}
        for number, system in enumerate(systems):
            if system.adapter:
                self._adapters[system] = f"adapter{number}"
                self.model = loading.load_adapter(self.model, system.adapter, f"adapter{number}")
        self.model.eval()

    @contextlib.contextmanager
    def active(self, system: System) -> Iterator[Any]:
        """The model with the adapter of one of its systems active, or without any."""
        if system in self._adapters:
            self.model.set_adapter(self._adapters[system])
        with self.model.disable_adapter() if self._adapters and not system.adapter else contextlib.nullcontext():
            yield self.model
