"""Checkpoints of transformers' Trainer: which of them are complete, and one more before a signal ends the training."""

import json
import re
import shutil
import signal
import sys
import zipfile
from pathlib import Path
from typing import Any, NoReturn

from lora_recipes.config.runfile import RunFile
from lora_recipes.models import adapters
from lora_recipes.support import files, libraries, processes, signals, streams

import click
from safetensors import SafetensorError, safe_open
from transformers import TrainerCallback
from transformers.trainer_utils import get_last_checkpoint

_ASIDE = "incomplete-"
"""Prefix of checkpoints that were set aside, which no trainer takes for checkpoints."""


def set_aside_incomplete(run: RunFile) -> None:
    """Rename incomplete checkpoints, and say so. One process of a run calls it, before any looks for the newest."""
    for checkpoint in _found(run):
        if fault := fault_of(checkpoint):
            aside = checkpoint.with_name(_ASIDE + checkpoint.name)
            shutil.rmtree(aside, ignore_errors=True)
            checkpoint.rename(aside)
            click.echo(f"{checkpoint} is not whole ({fault}); it was set aside as {aside.name}.", err=True)


def require_as_many_processes(run: RunFile) -> None:
    """Raises click.ClickException when a checkpoint would be gone on from with another number of processes.

    transformers skips as many batches as were trained, which are other rows then: some would be trained twice, others
    never. Each process has left the state of its random numbers in the checkpoint.
    """
    checkpoint = run.config.get("resume_from_checkpoint") or newest(run)
    before = len(list(run.path(checkpoint).glob("rng_state*.pth"))) if isinstance(checkpoint, str) else 0
    if before not in (0, processes.world_size()):
        raise click.ClickException(
            f"{checkpoint} is of a run with {before} process{'es' * (before > 1)}, this one has "
            f"{processes.world_size()}, which would train other rows; start as many, or train with --overwrite."
        )


def remove(run: RunFile) -> None:
    """Remove checkpoints and the adapter from a run file's output folder.

    The kept run file stays until the next one is written over it, so that what a kill leaves still belongs to it.
    Answers and results stay: they name their adapter.
    """
    folder = run.output_dir
    with files.as_click_errors(folder):
        for checkpoint in [*_found(run), *folder.glob(f"{_ASIDE}checkpoint-*")]:
            shutil.rmtree(checkpoint)
        for name in adapters.FILES:
            (folder / name).unlink(missing_ok=True)


def newest(run: RunFile) -> str | None:
    """The checkpoint to resume from; None when there is none, or the run file does not resume."""
    return get_last_checkpoint(run.output_dir) if run.resumes and run.output_dir.is_dir() else None


def _found(run: RunFile) -> list[Path]:
    return [path for path in run.output_dir.glob("checkpoint-*") if re.fullmatch(r"checkpoint-\d+", path.name)]


def _step(checkpoint: Path) -> int:
    return int(checkpoint.name.rpartition("-")[2])


def fault_of(checkpoint: Path) -> str:
    """What a checkpoint lacks; '' when training can resume from it.

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
    """The checkpoint that training resumes from is of the last step."""


class CheckpointOnSignal(TrainerCallback):
    """On SIGINT, SIGTERM and SIGHUP, save a checkpoint after the current step and exit with status 128 + the number.

    All processes of a run stop after the same step, whichever of them got the signal. An evaluation that is due after
    that step still takes place: the resumed run would leave it out.
    """

    def __init__(self) -> None:
        self.number = 0
        """Of the signal that any process of the run got; 0 before."""

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step >= state.max_steps:
            raise _Trained
        if state.global_step:
            args.eval_on_start = False  # the interrupted run has done it
        signals.wait_for_step()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.number = _largest(signals.told(), args.device)
        if self.number:
            control.should_save = control.should_training_stop = True

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.number and state.global_step < state.max_steps:
            if state.is_world_process_zero:
                streams.say(
                    f"told to end: checkpoint-{state.global_step} is saved in {args.output_dir}; "
                    "the same command goes on from there, with auto_resume_from_checkpoints in the run file."
                )
            _leave(self.number)
        signals.step_is_over()


def _leave(number: int) -> NoReturn:
    """Exit as the signal says. Another one ends that at once; under a launcher, which kills what it waits for, none."""
    signals.handle(signal.SIG_IGN if signals.launched() else lambda *_: signals.end(number, ""))
    sys.exit(128 + number)


def make_interruptible(trainer: Any) -> None:
    """Add the callback to a trainer, and let it end at once where it resumes from the last step.

    transformers would train one step more before it looks whether it is at the end. A step that fails after a signal,
    as when another process of the run is gone already, is said in one sentence.
    """
    train = trainer.train

    def to_the_end(*args: Any, **kwargs: Any) -> Any:
        try:
            return train(*args, **kwargs)
        except _Trained:
            return None
        except Exception as error:
            if not signals.told() or isinstance(error, click.ClickException):
                raise
            why = libraries.reason(error)
            if processes.is_main():
                streams.say(f"told to end, and the step failed ({why}); {signals.AGAIN}")
            _leave(signals.told())

    trainer.train = to_the_end
    trainer.add_callback(CheckpointOnSignal())


def _largest(number: int, device: Any) -> int:
    """Of the numbers that the processes of the run have."""
    import torch

    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return number
    found = torch.tensor(number, device=device)
    torch.distributed.all_reduce(found, op=torch.distributed.ReduceOp.MAX)
    return int(found)
