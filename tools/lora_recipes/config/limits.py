"""Values of the right type with which nothing can be trained: numbers out of range, names and patterns that end a run.

Axolotl and the plain trainer take such a value as it is, load the model, and fail or never end.
"""

import contextlib
import re
import signal
import threading
from collections.abc import Iterator
from typing import Any

from lora_recipes.config import yamlfile
from lora_recipes.config.yamlfile import Document, Problem
from lora_recipes.support import terminal

_RANGES: dict[str, tuple[float, float]] = {
    "seed": (0, 2**32 - 1),  # numpy's
    "lora_r": (1, 2**16),
    "lora_alpha": (0, 2**20),
    "lora_dropout": (0, 1),
    "sequence_len": (1, 2**27),
    "num_epochs": (0, 10**6),
    "max_steps": (-1, 10**9),
    "micro_batch_size": (1, 2**20),
    "eval_batch_size": (1, 2**20),
    "gradient_accumulation_steps": (1, 2**20),
    "learning_rate": (0, 100),
    "weight_decay": (0, 100),
    "max_grad_norm": (0, 10**9),
    "warmup_steps": (0, 10**9),
    "warmup_ratio": (0, 1),
    "adam_beta1": (0, 1),
    "adam_beta2": (0, 1),
    "adam_epsilon": (0, 1),
    "logging_steps": (0, 10**9),
    "eval_steps": (0, 10**9),
    "save_steps": (0, 10**9),
    "evals_per_epoch": (0, 10**6),
    "saves_per_epoch": (0, 10**6),
    "save_total_limit": (0, 10**6),
}
_PATHS = ("base_model", "output_dir", "dataset_prepared_path", "deepspeed")
_DATA = ("datasets", "test_datasets")
_PATTERNS = ("lora_target_modules", "lora_exclude_modules", "lora_rank_pattern", "lora_alpha_pattern")
_NO_PROJECT = re.compile(r"[/\\#?%:]")
"""What W&B refuses in the name of a project, which may have 128 characters."""

_NAMES = ("model.layers.31.self_attn.q_proj", "model.layers.31.mlp.experts.127.gate_up_proj", "lm_head")
"""Of modules, as long as they get: a pattern that has no end on them has none on a model's."""
_SECONDS = 1.0


def problems(document: Document) -> Iterator[Problem]:
    """Each value with which nothing can be trained, with what is wrong and the remedy."""
    config = document.data
    for key, (low, high) in _RANGES.items():
        value = config.get(key)
        if isinstance(value, (int, float)) and not isinstance(value, bool) and not low <= value <= high:
            yield _problem(
                document, (key,), f"expected a number from {low:,} to {high:,}, found {value!r}", "change it"
            )
    for key in _PATHS:
        yield from _path(document, (key,), config.get(key))
    for key in _DATA:
        for index, entry in enumerate(config[key] if isinstance(config.get(key), list) else []):
            if isinstance(entry, dict):
                yield from _data_set(document, (key, index), entry)
    project = config.get("wandb_project")
    if isinstance(project, str) and (_NO_PROJECT.search(project) or len(project) > 128):
        found = f"W&B takes no project named {terminal.shown(project)}"
        yield _problem(document, ("wandb_project",), found, "write up to 128 characters without / \\ # ? % and :")
    for key in _PATTERNS:
        yield from _pattern(document, (key,), config.get(key))


def _problem(document: Document, path: yamlfile.Path, found: str, fix: str) -> Problem:
    return Problem("impossible-value", path, document.line(path), found, fix)


def _data_set(document: Document, here: yamlfile.Path, entry: dict[str, Any]) -> Iterator[Problem]:
    if entry.get("path") in (None, ""):
        yield _problem(document, here, "expected a path, found none", "name the data set's file, folder or repository")
    for key in ("path", "data_files"):
        values = entry.get(key)
        for value in values if isinstance(values, list) else [values]:
            yield from _path(document, (*here, key), value)


def _path(document: Document, here: yamlfile.Path, value: Any) -> Iterator[Problem]:
    """No file system takes these."""
    if not isinstance(value, str):
        return
    if terminal.visible(value) != value or "\n" in value:
        yield _problem(document, here, f"{terminal.shown(value)} has characters that no path should", "take them out")
    elif len(value.encode()) > 4095 or any(len(part.encode()) > 255 for part in value.split("/")):
        yield _problem(document, here, f"{terminal.shown(value)} is longer than a path can be", "shorten it")


def _pattern(document: Document, here: yamlfile.Path, value: Any) -> Iterator[Problem]:
    """PEFT matches the name of each module of the model with it, without a time limit."""
    for pattern in [value] if isinstance(value, str) else value if isinstance(value, dict) else []:
        try:
            with _at_most(_SECONDS):
                for name in _NAMES:
                    re.fullmatch(pattern, name)
        except (re.error, RecursionError, OverflowError) as error:
            found = f"{terminal.shown(pattern)} is no regular expression: {error}"
            yield _problem(document, here, found, "correct it, or list names of modules")
        except TimeoutError:
            found = f"{terminal.shown(pattern)} is not matched within {_SECONDS:g} s"
            yield _problem(document, here, found, "nest no repetitions, or list names of modules")


@contextlib.contextmanager
def _at_most(seconds: float) -> Iterator[None]:
    """Raise TimeoutError in what takes longer: re looks for signals while it matches. In a main thread only."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def end(*_: object) -> None:
        raise TimeoutError

    before = signal.signal(signal.SIGALRM, end)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
