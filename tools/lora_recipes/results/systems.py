"""What is measured: the base model of a recipe or a variant trained from it, and where its results are kept."""

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lora_recipes.config.runfile import RunFile
from lora_recipes.results import result_files
from lora_recipes.support import files

import click

BASE = "base"


@dataclass(frozen=True, eq=False)
class System:
    """One system with its result file; that of a run file is made by `of_run`, one of a report has no run file."""

    recipe: str
    name: str
    """The variant, or BASE."""
    path: Path
    """The result file."""
    run_file: RunFile | None = None
    adapter: Path | None = None
    """The folder of its adapter; None for the base model, and in a report."""

    @property
    def run(self) -> RunFile:
        """Raises ValueError for a system of a report."""
        if self.run_file is None:
            raise ValueError(f"{self.recipe} {self.name} has no run file")
        return self.run_file

    @property
    def folder(self) -> Path:
        """Where what is measured of it is kept."""
        return self.path.parent

    @property
    def label(self) -> str:
        return f"{self.recipe} {self.name}"

    def answers_path(self, split: str) -> Path:
        return self.folder / f"answers-{split}.jsonl"

    def record(self, kind: str, section: dict[str, Any]) -> Path:
        """Put one section into its result file."""
        return result_files.update(self.run, kind, section, base=self.name == BASE)

    @functools.cached_property
    def result(self) -> dict[str, Any]:
        """Its result file; empty without one. Raises click.ClickException for one that is truncated or foreign."""
        return result_files.read(self.path) if self.path.exists() else {}

    def section(self, kind: str) -> dict[str, Any]:
        found = self.result.get(kind)
        return found if isinstance(found, dict) else {}

    @property
    def metrics(self) -> dict[str, Any]:
        """The scores of evaluation and benchmark under their names."""
        return {**(self.section("evaluation").get("metrics") or {}), **(self.section("benchmark").get("metrics") or {})}

    @property
    def scored_with(self) -> str:
        """The BERTScore model; '' when unknown."""
        return (self.section("evaluation").get("scoring") or {}).get("model") or ""

    @functools.cached_property
    def history(self) -> list[dict[str, Any]]:
        """What was logged in training: in its section, else in the trainer state beside it or of the last checkpoint.

        Raises click.ClickException for a trainer state that is cut off or spoilt.
        """
        logged = self.section("training").get("log_history")
        if logged is None and (state := self._trainer_state()).is_file():
            from lora_recipes.results import schema

            logged = files.read_json(state).get("log_history")
            if mistake := schema.mistake(schema.History, logged):
                raise click.ClickException(f"{state}: log_history.{mistake}; delete the file, or train again.")
        return [entry for entry in logged or [] if isinstance(entry, dict) and isinstance(entry.get("step"), int)]

    def _trainer_state(self) -> Path:
        state = self.folder / "trainer_state.json"
        states = self.folder.glob(f"checkpoint-*/{state.name}")
        numbered = {int(step): path for path in states if (step := path.parent.name.partition("-")[2]).isdecimal()}
        return state if state.is_file() or not numbered else numbered[max(numbered)]

    def losses(self, name: str) -> list[tuple[int, float]]:
        """(optimizer step, nats a token) of `loss` or `eval_loss`, the last value of each step."""
        logged = self.history
        found = {entry["step"]: float(entry[name]) for entry in logged if isinstance(entry.get(name), (int, float))}
        return sorted(found.items())


def of_run(run: RunFile, adapter: Path | None) -> System:
    """The system of a run file with an adapter, or its bare base model."""
    path = result_files.folder(run, base=adapter is None) / result_files.NAME
    return System(run.recipe, run.variant if adapter else BASE, path, run, adapter)


def evaluation_kind(split: str) -> str:
    """The section of an evaluation on a split."""
    return "evaluation" if split == "test" else f"evaluation-{split}"
