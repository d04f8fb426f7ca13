"""All checks of one run file, in an order in which each can use what the ones before have found."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from lora_recipes.check import (
    arithmetic,
    injected,
    inputs,
    leaks,
    loading,
    machine,
    masks,
    parity,
    parts,
    secrets,
    structure,
    targets,
    traps,
    validation,
)
from lora_recipes.check.checked_run import CheckedRun
from lora_recipes.check.findings import Finding, Report
from lora_recipes.check.validation import Axolotl

import click


def run(
    source: str | Path, axolotl: Axolotl, model_dir: Path | None = None, processes: int = 1
) -> tuple[CheckedRun, list[parts.Part]]:
    """Check a run file; gives the checked with its report, and the training rows for a view of them.

    Raises click.ClickException when the file is no YAML mapping at all.
    """
    checked = CheckedRun(source, model_dir, processes)
    axolotl.start()  # it imports while the rest goes on
    for module in (structure, secrets, inputs, traps, machine, targets, loading):
        _guarded(checked, module.__name__.rpartition(".")[2], module.check)
    training = _guarded(checked, "rows", lambda one: parts.load(one, "datasets", tokenized=True)) or []
    evaluation = _guarded(checked, "evaluation rows", lambda one: parts.load(one, "test_datasets")) or []
    _guarded(checked, "Axolotl's answers", lambda one: validation.check(one, training, evaluation, axolotl))
    lengths = _guarded(checked, "parity", lambda one: parity.check(one, training)) or {}
    _guarded(checked, "special tokens in rows", lambda one: injected.check(one, training))
    counts = _guarded(checked, "masks", lambda one: masks.check(one, training, lengths))
    rows = (counts.rows, counts.tokens) if counts else (_rows(training), None)
    _guarded(checked, "arithmetic", lambda one: arithmetic.check(one, *rows))
    _guarded(checked, "leakage", lambda one: leaks.check(one, training, evaluation))
    return checked, training


def _guarded(checked: CheckedRun, name: str, check: Callable[[CheckedRun], Any]) -> Any:
    """A check that fails on a file nobody thought of must not hide what the others find, nor pass for one that ran."""
    try:
        return check(checked)
    except Exception as error:
        words = error.message if isinstance(error, click.ClickException) else f"{type(error).__name__}: {error}"
        checked.error(
            "check-failed",
            "the file",
            f"the check of {name} itself failed ({' '.join(words.split())[:300]})",
            "an answer; what it looks for is not known now",
            "correct what the words name, if it is the file; otherwise please report it with the file",
        )
    return None


def _rows(training: list[parts.Part]) -> int | None:
    found = [len(part.rows) for part in training if not part.made_up]
    return sum(found) if found else None


def failed(source: str | Path, error: click.ClickException) -> Report:
    """The report of a file that is no YAML mapping."""
    report = Report("stdin" if source == "-" else str(source))
    report.findings.append(
        Finding("error", "yaml", "the file", None, error.message, "a YAML mapping of Axolotl keys", "correct the file")
    )
    return report
