"""What a check says: findings, facts, and what could not be checked."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

from lora_recipes.config import scrubbing
from lora_recipes.support import terminal

import click

SEVERITIES = ("error", "warning", "note")
_LENGTH = 1000
"""Characters of each part of a finding."""
_COLOURS = {"error": "red", "warning": "yellow", "note": "blue"}


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong, or worth knowing, with its place and its remedy."""

    severity: str
    check: str
    """The name of the check, as in `target-modules`."""
    key: str
    line: int | None
    found: str
    expected: str
    fix: str

    def __post_init__(self) -> None:
        for name in ("key", "found", "expected", "fix"):  # all may quote the file, where a token may stand
            object.__setattr__(self, name, _said(getattr(self, name)))


def _said(text: str) -> str:
    """What may be said of a file: no secret, nothing that steers a terminal, no value of a megabyte."""
    return terminal.shortened(terminal.visible(scrubbing.scrubbed(text)), _LENGTH)


@dataclass
class Report:
    """All that the checks of one run file say."""

    name: str
    findings: list[Finding] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)
    lines: list[tuple[str, str]] = field(default_factory=list)
    unchecked: list[tuple[str, str]] = field(default_factory=list)

    def fact(self, label: str, value: Any, *text: str) -> None:
        """A value for the JSON, and lines that say it under a label."""
        self.facts[label.replace(" ", "_")] = value
        self.lines += [(label if number == 0 else "", _said(line)) for number, line in enumerate(text)]

    def skip(self, check: str, reason: str) -> None:
        """Note a check that could not be made."""
        reason = _said(" ".join(reason.split()))
        if (check, reason) not in self.unchecked:
            self.unchecked.append((check, reason))

    def count(self, severity: str) -> int:
        return sum(finding.severity == severity for finding in self.findings)

    @property
    def failed(self) -> bool:
        return self.count("error") > 0

    def sorted(self) -> list[Finding]:
        """Errors first, then by line."""
        return sorted(self.findings, key=lambda one: (SEVERITIES.index(one.severity), one.line or 0, one.check))

    def as_json(self) -> dict[str, Any]:
        return {
            "run": self.name,
            "errors": self.count("error"),
            "warnings": self.count("warning"),
            "findings": [asdict(finding) for finding in self.sorted()],
            "facts": self.facts,
            "not_checked": [{"check": check, "reason": reason} for check, reason in self.unchecked],
        }

    def as_text(self) -> Iterator[str]:
        """Lines for a terminal: facts, findings, what was not checked, the sum."""
        yield click.style(_said(self.name), bold=True)
        for label, text in self.lines:
            yield f"  {label:<16}{text}"
        for finding in self.sorted():
            yield ""
            yield from _finding_lines(finding)
        if self.unchecked:
            yield ""
        for check, reason in self.unchecked:
            yield click.style(f"not checked: {check}: {reason}", dim=True)
        yield ""
        yield self._sum()

    def _sum(self) -> str:
        counts = [f"{self.count(name)} {name}{'' if self.count(name) == 1 else 's'}" for name in SEVERITIES[:2]]
        notes = self.count("note")
        more = f", {notes} note{'' if notes == 1 else 's'}" if notes else ""
        skipped = f", {len(self.unchecked)} not checked" if self.unchecked else ""
        return click.style(", ".join(counts) + more + skipped, fg="red" if self.failed else "green", bold=True)


def _finding_lines(finding: Finding) -> Iterator[str]:
    place = f"{finding.key} (line {finding.line})" if finding.line else finding.key
    yield f"{click.style(finding.severity, fg=_COLOURS[finding.severity], bold=True)}: {finding.check}: {place}"
    for label, text in (("found", finding.found), ("expected", finding.expected), ("fix", finding.fix)):
        for number, line in enumerate(text.split("\n") if text else []):
            yield f"  {label + ':' if number == 0 else '':<10}{line}"
