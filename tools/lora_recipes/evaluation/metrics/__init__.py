"""What is measured of answers, a module of this package each; changes with what an answer is worth.

A module has
- TITLES: the name of each of its scores in result.json, with title and reading in tables; the chief one first,
- HEADING: of the chief one in the table of tools/eval.py,
- score(answers: Answers) -> dict: name -> the score of each answer. Where it has a PREFIX, the names lack it.
It may have WEIGHTS, the name of that of its scores by which the answers count in means, and summary(answers, means),
further figures by name from the answers and from the means of its scores.
"""

import functools
import importlib
import pkgutil
from dataclasses import dataclass
from types import ModuleType


@dataclass(frozen=True)
class Answers:
    """The answers of one system, row by row, with what a metric can need."""

    texts: list[str]
    references: list[str]
    reference_nats: list[float]
    """The cross-entropy of each reference, summed over its tokens."""
    reference_tokens: list[int]
    score_model: str | None = None
    """For BERTScore; None is the embedded one."""


@functools.cache
def modules() -> tuple[ModuleType, ...]:
    """The metrics by name."""
    names = sorted(found.name for found in pkgutil.iter_modules(__path__))
    return tuple(importlib.import_module(f"{__name__}.{name}") for name in names)


def titles() -> dict[str, tuple[str, str]]:
    """Title and reading of every score by its name in result.json, in the order of tables."""
    return {name: told for module in modules() for name, told in module.TITLES.items()}
