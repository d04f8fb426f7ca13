"""Checkpoints of transformers' Trainer: which of them are whole, and one more when the process is told to end."""

import json
import re
import shutil
import signal
import sys
import zipfile
from pathlib import Path
from typing import Any

from lora_recipes.config.runfile import KEPT, RunFile
from lora_recipes.models import adapters
from lora_recipes.support import files

import click
from safetensors import SafetensorError, safe_open
from transformers import TrainerCallback

_ASIDE = "incomplete-"
"""Begins the names of checkpoints that were set aside: no trainer takes them for checkpoints."""


def set_aside_incomplete(run: RunFile) -> None:
    """Rename checkpoints that are not whole, and say so; for one process of a run, before any looks for the newest."""
    for checkpoint in _found(run):
        if fault := fault_of(checkpoint):
            aside = checkpoint.with_name(_ASIDE + checkpoint.name)
            shutil.rmtree(aside, ignore_errors=True)
            checkpoint.rename(aside)
            click.echo(f"{checkpoint} is not whole ({fault}); it was set aside as {aside.name}.", err=True)


def remove(run: RunFile) -> None:
    """Remove what was trained into a run file's output folder: checkpoints, the adapter, and the kept run file.

    The kept run file goes last: after a kill, what is left still belongs to it and to no other. Answers and results
    stay; they name the adapter that they are of.
    """
    folder = run.output_dir
    with files.as_click_errors(folder):
        for checkpoint in [*_found(run), *folder.glob(f"{_ASIDE}checkpoint-*")]:
            shutil.rmtree(checkpoint)
        for name in (*adapters.FILES, KEPT):
            (folder / name).unlink(missing_ok=True)


def newest(run: RunFile) -> Path | None:
    """The checkpoint to go on from, when the run file resumes."""
    return max(_found(run), key=_step, default=None) if run.resumes else None


def _found(run: RunFile) -> list[Path]:
    return [path for path in run.output_dir.glob("checkpoint-*") if re.fullmatch(r"checkpoint-\d+", path.name)]


def _step(checkpoint: Path) -> int:
    return int(checkpoint.name.rpartition("-")[2])


def fault_of(checkpoint: Path) -> str:
    """What a checkpoint lacks to be gone on from; '' when it is whole.

    transformers writes trainer_state.json last. DeepSpeed keeps the optimizer in global_step*, named by `latest`.
    """
    try:
        state = json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))
        if state["global_step"] != _step(checkpoint):
            return f"trainer_state.json is of step {state['global_step']}"
    except FileNotFoundError:
        return "no trainer_state.json"
    except (ValueError, KeyError, TypeError):
        return "trainer_state.json is cut off"
    if not any((checkpoint / name).is_file() for name in ("optimizer.pt", "latest")):
        return "no optimizer state"
    if (checkpoint / "latest").is_file():
        shards = checkpoint / (checkpoint / "latest").read_text(encoding="utf-8").strip()
        if not any(shards.glob("*optim_states.pt")):
            return f"no optimizer state in {shards.name}"
    for path in sorted([*checkpoint.rglob("*.pt"), *checkpoint.rglob("*.pth")]):
        if not zipfile.is_zipfile(path):  # what torch.save writes ends in a table of contents
            return f"{path.relative_to(checkpoint)} is cut off"
    try:
        with safe_open(checkpoint / adapters.FILES[0], framework="pt"):
            return ""
    except (OSError, SafetensorError):
        return f"{adapters.FILES[0]} is missing or cut off"


class _Trained(Exception):
    """The checkpoint gone on from is that of the last step."""


class Interruptible(TrainerCallback):
    """On SIGTERM, a checkpoint after the step under way, and the process ends with exit status 143.

    All processes of a run stop after the same step, whichever of them was told. An evaluation that is due after
    that step is still made: the run that goes on would not make it.
    """

    def __init__(self) -> None:
        self.told = False
        self._before: Any = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step >= state.max_steps:
            raise _Trained
        if state.global_step:
            args.eval_on_start = False  # was made by the run that is gone on with
        self._before = signal.signal(signal.SIGTERM, self._tell)

    def _tell(self, *_: Any) -> None:
        self.told = True

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.told = _any(self.told, args.device)
        if self.told:
            control.should_save = control.should_training_stop = True

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        signal.signal(signal.SIGTERM, self._before)
        if self.told and state.global_step < state.max_steps:
            if state.is_world_process_zero:
                click.echo(
                    f"told to end: checkpoint-{state.global_step} is saved in {args.output_dir}; "
                    "the same command goes on from there, with auto_resume_from_checkpoints in the run file.",
                    err=True,
                )
            sys.exit(128 + signal.SIGTERM)


def make_interruptible(trainer: Any) -> None:
    """Give a trainer the callback, and let it leave a checkpoint of the last step as it is.

    transformers would train a step more before it looks whether it is at the end.
    """
    train = trainer.train

    def to_the_end(*args: Any, **kwargs: Any) -> Any:
        try:
            return train(*args, **kwargs)
        except _Trained:
            return None

    trainer.train = to_the_end
    trainer.add_callback(Interruptible())


def _any(told: bool, device: Any) -> bool:
    """Whether any process of the run was told."""
    import torch

    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return told
    flag = torch.tensor(int(told), device=device)
    torch.distributed.all_reduce(flag, op=torch.distributed.ReduceOp.MAX)
    return bool(flag)
