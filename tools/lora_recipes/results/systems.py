"""What is measured: the base model of a recipe or a variant trained from it, and where its results are kept."""

import functools
import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lora_recipes.config.runfile import BASE_NAME, RunFile
from lora_recipes.results import result_files
from lora_recipes.support import files

import click

BASE = "base"

_MODEL_FILES = {".safetensors", ".bin", ".json", ".jinja", ".model", ".txt", ".gguf"}


@dataclass(frozen=True, eq=False)
class System:
    """One system with its result file; that of a run file is made by `of_run`, one of a report has no run file."""

    recipe: str
    name: str
    """The variant, or that of a base model: see `of_base`."""
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
    def is_base(self) -> bool:
        return BASE_NAME.fullmatch(self.name) is not None

    @property
    def label(self) -> str:
        return f"{self.recipe} {self.name}"

    def answers_path(self, split: str) -> Path:
        return self.folder / f"answers-{split}.jsonl"

    def record(self, kind: str, section: dict[str, Any]) -> Path:
        """Put one section (training, evaluation, benchmark, merge) into its result file."""
        return self._update({kind: section})

    def reserve(self) -> None:
        """Write the result file of a base model, if there is none: its folder is then no other model's."""
        if not self.path.is_file():
            self._update({})

    def _update(self, sections: dict[str, Any]) -> Path:
        names = {"recipe": self.recipe, "variant": self.name}
        model = {"model": model_identity(self.run.model())} if self.is_base else {}
        with files.locked(self.path):
            result = (result_files.read_or_set_aside(self.path) if os.path.lexists(self.path) else None) or names
            files.write_text(
                self.path, json.dumps({**result, **model, **sections}, indent=1, ensure_ascii=False) + "\n"
            )
        return self.path

    @property
    def model(self) -> str | None:
        """The identity of the base model that was measured, alone or under an adapter; None where no result has it."""
        settings, tasks = self.section("evaluation").get("settings"), self.section("benchmark").get("inputs")
        told = [self.result.get("model"), settings.get("base_model") if isinstance(settings, dict) else None]
        of_tasks = tasks.values() if isinstance(tasks, dict) else ()
        told += [task.get("model") for task in of_tasks if isinstance(task, dict)]
        return next((one for one in told if isinstance(one, str) and one), None)

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


def of_run(run: RunFile, adapter: Path) -> System:
    """The system of a run file with an adapter: its own, or another, whose results are not the run's."""
    own = adapter.resolve() == run.output_dir.resolve()
    name = run.variant if own else f"{run.variant}-{adapter.resolve().name}"
    return System(run.recipe, name, run.output_dir.parent / name / result_files.NAME, run, adapter)


def of_base(run: RunFile, identity: str | None) -> System:
    """The bare base model of a run file, known by its weights.

    Its results lie in `base` beside the run's outputs, or, where that holds another model's or anything else, in
    `base-` with eight digits of its identity. identity: as model_identity gives it, or None for the only one there
    may be.
    """
    parent = run.output_dir.parent
    plain = System(run.recipe, BASE, parent / BASE / result_files.NAME, run)
    if identity in (None, plain.model) or (not plain.path.exists() and not _others_in(plain.folder)):
        return plain
    name = f"{BASE}-{hashlib.sha256(str(identity).encode()).hexdigest()[:8]}"
    return System(run.recipe, name, parent / name / result_files.NAME, run)


def _others_in(folder: Path) -> bool:
    """Whether a folder holds anything but answers and scores, which a killed evaluation leaves."""
    if not folder.exists():
        return False
    return not folder.is_dir() or any(
        not path.name.startswith(("answers-", "benchmark-", ".")) for path in folder.iterdir()
    )


@functools.cache
def model_identity(model: str) -> str:
    """A hash of a local model's files, wherever the folder lies; the commit of a model on the Hub."""
    folder = Path(model)
    if folder.is_dir():
        paths = [path for path in sorted(folder.iterdir()) if path.is_file() and path.suffix in _MODEL_FILES]
        held = [[path.name, files.sha256(path)] for path in paths]
        return f"sha256:{hashlib.sha256(json.dumps(held, sort_keys=True).encode()).hexdigest()}"
    from transformers import AutoConfig

    return f"{model}@{AutoConfig.from_pretrained(model, trust_remote_code=False)._commit_hash}"


def evaluation_kind(split: str) -> str:
    """The section of an evaluation on a split."""
    return "evaluation" if split == "test" else f"evaluation-{split}"
