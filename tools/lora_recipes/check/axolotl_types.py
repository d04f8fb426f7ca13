"""Axolotl's data-set types, asked of its own modules; it runs in the worker process, where Axolotl is imported."""

import difflib
import importlib
import pkgutil
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

from lora_recipes.config import values

_ROOT = "axolotl.prompt_strategies"


def nearest(kind: str, rl: str | None) -> str | None:
    """None where Axolotl resolves a `type:`; otherwise the most similar one that it has, or an empty text."""
    if (_is_preference(kind, rl) if rl else _is_supervised(kind)) or _is_elsewhere(kind, rl):
        return None
    near = difflib.get_close_matches(kind.replace(":load_", ".load_"), list(_names(rl)), 1, 0.6)
    return near[0] if near else ""


def _is_supervised(kind: str) -> bool:
    """As prompt_strategies.load and get_dataset_wrapper resolve it."""
    from axolotl.prompters import PromptStyle
    from axolotl.utils.data.wrappers import DATASET_HANDLERS

    if kind.startswith("bradley_terry"):
        return _loads(f"{_ROOT}.bradley_terry", kind.partition(".")[2])
    base, _, style = kind.partition(":")
    return _loads(_ROOT, kind) or (base in DATASET_HANDLERS and style in ("", *(one.value for one in PromptStyle)))


def _loads(package: str, kind: str) -> bool:
    module, _, last = kind.rpartition(".")
    if last == "load" or last.startswith("load_"):
        return hasattr(_module(f"{package}.{module}"), last)
    return hasattr(_module(f"{package}.{kind}"), "load")


def _is_preference(kind: str, rl: str | None) -> bool:
    """As prompt_strategies.base.load resolves it."""
    module, _, function = (kind if "." in kind else f"{kind}.default").rpartition(".")
    return hasattr(_module(f"{_package(rl)}.{module}"), function)


def _package(rl: str | None) -> str:
    return f"{_ROOT}.{rl if rl in ('orpo', 'kto', 'ebft') else 'dpo'}"


def _module(name: str) -> ModuleType | None:
    try:
        return importlib.import_module(name)
    except ImportError:
        return None


def _is_elsewhere(kind: str, rl: str | None) -> bool:
    """Whether a type is a module of one's own, in the environment or beside the run file, where nothing is imported."""
    module, _, last = kind.rpartition(".")
    if not module or (last.startswith("load") and not rl):
        return False
    return values.is_module(module if rl else kind, Path.cwd())


def _names(rl: str | None) -> Iterator[str]:
    """All types by name, for the one most similar to a typing mistake."""
    from axolotl.prompters import PromptStyle
    from axolotl.utils.data.wrappers import DATASET_HANDLERS

    package = importlib.import_module(_package(rl) if rl else _ROOT)
    for found in pkgutil.iter_modules(package.__path__):
        functions = [name for name in vars(_module(f"{package.__name__}.{found.name}")) if not name.startswith("_")]
        if rl:
            yield from (f"{found.name}.{name}" for name in functions if name.islower() and not name.startswith("load"))
        else:
            yield from [found.name] * ("load" in functions and found.name != "bradley_terry")
            yield from (f"{found.name}.{name}" for name in functions if name.startswith("load_"))
    if not rl:
        yield from (
            *DATASET_HANDLERS,
            *(f"alpaca:{style.value}" for style in PromptStyle),
            "bradley_terry.chat_template",
        )
