"""accelerate's or torchrun's launcher, run in this process, which passes signals on to the trainers that it starts.

Alone, torchrun ends in a traceback, accelerate leaves its trainers behind, and neither exits with the signal's status.
"""

import contextlib
import importlib
import os
import signal
import subprocess
import sys
import time
from types import FrameType
from typing import Any, NoReturn

from lora_recipes.support import signals

_MODULES = {"accelerate": "accelerate.commands.accelerate_cli", "torchrun": "torch.distributed.run"}
"""Of the console scripts of these names."""

_TRAINER, _RANK = "axolotl.cli.train", "lora_recipes.axolotl.rank"

_GRACE = 120
"""Seconds between a trainer's SIGTERM and SIGKILL: for a step, a due evaluation and a checkpoint."""

_told: list[float] = []
"""When the first signal came."""


def run(_: str, command: list[str], environment: Any) -> NoReturn:
    """Run the launcher to its end, and exit as its trainers did; takes what os.execvpe takes.

    A trainer that failed has said why.
    """
    from torch.distributed.elastic.multiprocessing import api, errors

    api._terminate_process_handler = _pass_on  # torchrun sets it for these signals
    signals.handle(_pass_on)
    os.environ[signals.LAUNCHER] = str(os.getpid())
    # torchrun kills its trainers 30 s after one of them failed, checkpoint or not, unless told otherwise.
    os.environ.setdefault("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", str(_GRACE))
    sys.argv = [_RANK if part == _TRAINER else part for part in command]
    try:
        importlib.import_module(_MODULES[command[0]]).main()
    except subprocess.CalledProcessError as error:
        sys.exit(status(error.returncode))
    except errors.ChildFailedError as error:
        sys.exit(status(error.get_first_failure()[1].exitcode))
    sys.exit(0)


def status(code: int) -> int:
    """A shell's exit status for Python's: 128 + number where a signal ended the process."""
    return code if code >= 0 else 128 - code


def _pass_on(signum: int, frame: FrameType | None) -> None:
    """Tell the trainers, wait for their ends, and exit as the signal says; at once where it comes again."""
    if not _told:
        _told.append(time.monotonic())
        codes = _end_trainers()
        if set(codes) == {0}:
            os._exit(0)  # it came in the last step
        said = 128 + signal.SIGTERM in codes
        signals.end(signum, "" if said else f"told to end while nothing is trained; {signals.AGAIN}")
    if time.monotonic() - _told[0] > signals.SAME:
        signals.end(signum, f"told to end again, before a checkpoint was saved; {signals.AGAIN}")


def _end_trainers() -> list[int]:
    """Their exit codes, of those that end in time."""
    import psutil

    trainers = []
    for child in psutil.Process().children():
        with contextlib.suppress(psutil.NoSuchProcess):
            if _RANK in child.cmdline():
                child.terminate()
                trainers.append(child)
    return [trainer.returncode for trainer in psutil.wait_procs(trainers, timeout=_GRACE)[0]]
