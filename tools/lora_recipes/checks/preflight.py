"""All checks of one run file, in an order in which each can use what the ones before have found."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from lora_recipes.checks import (
    arithmetic,
    inputs,
    leaks,
    machine,
    masks,
    parity,
    parts,
    secrets,
    structure,
    targets,
    traps,
)
from lora_recipes.checks.findings import Finding, Report
from lora_recipes.checks.subject import Limits, Subject
from lora_recipes.checks.validation import Axolotl

import click


def run(
    source: str | Path, axolotl: Axolotl, model_dir: Path | None = None, limits: Limits | None = None
) -> tuple[Subject, list[parts.Part]]:
    """Check a run file; gives the subject with its report, and the training rows for a view of them.

    Raises click.ClickException when the file is no YAML mapping at all.
    """
    subject = Subject(source, model_dir, limits)
    axolotl.ask_validation(subject)  # it imports while the rest goes on
    for check in (structure.check, secrets.check, inputs.check, traps.check, machine.check, targets.check):
        _guarded(subject, check)
    training = _guarded(subject, lambda one: parts.load(one, "datasets", axolotl)) or []
    lengths = _guarded(subject, lambda one: parity.check(one, training)) or {}
    counts = _guarded(subject, lambda one: masks.check(one, training, lengths))
    rows = (counts.rows, counts.tokens) if counts else (_rows(training), None)
    _guarded(subject, lambda one: arithmetic.check(one, *rows))
    _guarded(subject, lambda one: _leakage(one, training))
    _guarded(subject, axolotl.check)
    return subject, training


def _guarded(subject: Subject, check: Callable[[Subject], Any]) -> Any:
    """A check that fails on a file nobody thought of must not hide what the others find."""
    try:
        return check(subject)
    except click.ClickException as error:
        subject.report.skip(getattr(check, "__module__", "check").rpartition(".")[2], error.message)
    except Exception as error:
        name = getattr(check, "__module__", "check").rpartition(".")[2]
        subject.report.skip(name, f"this check itself failed, please report it ({type(error).__name__}: {error})")
    return None


def _rows(training: list[parts.Part]) -> int | None:
    found = [len(part.rows) for part in training if not part.made_up]
    return sum(found) if found else None


def _leakage(subject: Subject, training: list[parts.Part]) -> None:
    trained = [question for part in training if not part.made_up for question in part.questions]
    if not trained:
        return
    evaluation = {}
    for name, found in (("validation", parts.load(subject, "test_datasets")), ("test", parts.load_test(subject))):
        questions = [question for part in found if not part.made_up for question in part.questions]
        if questions:
            evaluation[name] = questions
    leaks.check(subject, trained, evaluation)


def failed(source: str | Path, error: click.ClickException) -> Report:
    """The report of a file that is no YAML mapping."""
    report = Report("stdin" if source == "-" else str(source))
    report.findings.append(
        Finding("error", "yaml", "the file", None, error.message, "a YAML mapping of Axolotl keys", "mend the file")
    )
    return report
