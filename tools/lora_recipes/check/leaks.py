"""Leakage: evaluation rows that are in the training rows, word for word or nearly."""

from typing import Any

from lora_recipes.check.subject import Subject
from lora_recipes.data import similarity


def check(subject: Subject, training: list[str], evaluation: dict[str, list[str]]) -> None:
    """Compare the questions of each evaluation part (`test_datasets`, `test`) with those of training."""
    shares: dict[str, Any] = {}
    for part, texts in evaluation.items():
        found = similarity.overlaps(texts, training, subject.limits.similarity)
        exact = sum(one.exact for one in found)
        shares[part] = {"rows": len(texts), "exact": exact, "near": len(found) - exact}
        if not found:
            continue
        worst = max(found, key=lambda one: (one.exact, one.similarity))
        share = len(found) / len(texts)
        severity = "error" if share > subject.limits.leaked else "warning"
        key = "test_datasets" if part == "validation" else "datasets"
        subject.find(
            severity,
            "leakage",
            key,
            f"{len(found)} of {len(texts)} {part} questions ({share:.1%}) are in the training rows "
            f"({exact} word for word), as {_short(texts[worst.row])!r} and {_short(training[worst.other])!r}",
            f"at most {subject.limits.leaked:.0%} of them",
            "take them out of one side (tools/data.py build --dedupe, tools/data.py leakage lists them)",
        )
    words = [
        f"{part}: {one['exact']} exact, {one['near']} near of {one['rows']} questions" for part, one in shares.items()
    ]
    if shares:
        subject.report.fact("leakage", shares, "; ".join(words))


def _short(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= 80 else f"{text[:77]}…"
