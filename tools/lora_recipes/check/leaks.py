"""Leakage: evaluation questions that are among the training rows, word for word or nearly."""

from typing import Any

from lora_recipes.check import parts
from lora_recipes.check.checked_run import CheckedRun
from lora_recipes.check.parts import Part
from lora_recipes.data import similarity

_MOST_LEAKED = 0.05
"""The share of evaluation questions from which it is an error."""


def check(checked: CheckedRun, training: list[Part], evaluation: list[Part]) -> None:
    """Compare the questions of `test_datasets` and of the test split with those of training."""
    trained = _questions(training)
    if not trained:
        return
    shares: dict[str, Any] = {}
    for name, found in (("validation", evaluation), ("test", parts.load_test(checked))):
        if questions := _questions(found):
            shares[name] = _compare(checked, name, questions, trained)
    lines = [
        f"{name}: {one['exact']} exact, {one['near']} near of {one['rows']} questions" for name, one in shares.items()
    ]
    if shares:
        checked.report.fact("leakage", shares, "; ".join(lines))


def _questions(found: list[Part]) -> list[str]:
    return [question for part in found if not part.made_up for question in part.questions]


def _compare(checked: CheckedRun, name: str, asked: list[str], trained: list[str]) -> dict[str, int]:
    found = similarity.overlaps(asked, trained)
    exact, share = sum(one.exact for one in found), len(found) / len(asked)
    if found:
        worst = max(found, key=lambda one: (one.exact, one.similarity))
        checked.find(
            "error" if share > _MOST_LEAKED else "warning",
            "leakage",
            "test_datasets" if name == "validation" else "datasets",
            f"{len(found)} of {len(asked)} {name} questions ({share:.1%}) are in the training rows "
            f"({exact} word for word), as {_short(asked[worst.row])!r} and {_short(trained[worst.other])!r}",
            f"at most {_MOST_LEAKED:.0%} of them",
            "take them out of one side (tools/data.py build --dedupe, tools/data.py leakage lists them)",
        )
    return {"rows": len(asked), "exact": exact, "near": len(found) - exact}


def _short(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= 80 else f"{text[:77]}…"
