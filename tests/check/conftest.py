"""What the tests of the check share: Axolotl in its worker, and the findings about a text."""

from collections.abc import Callable, Iterator
from pathlib import Path

from lora_recipes.check.checked_run import CheckedRun
from lora_recipes.check.findings import Finding
from lora_recipes.check.validation import Axolotl

import pytest


@pytest.fixture(scope="session")
def axolotl() -> Iterator[Axolotl]:
    with Axolotl() as started:
        yield started


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def findings_of(here: Path) -> Callable[..., list[Finding]]:
    """What one check says to a run file's text: `findings_of(traps.check, text)`."""

    def find(check: Callable[[CheckedRun], None], text: str) -> list[Finding]:
        (here / "run.yaml").write_text(text, encoding="utf-8")
        checked = CheckedRun("run.yaml")
        check(checked)
        return checked.report.findings

    return find
