"""SIGINT, SIGTERM and SIGHUP end a training with one sentence and status 128 + their number, and nobody stays behind.

Before training begins, and when it is over, a process ends at once. In between a signal is noted, and the trainer ends
after its step; the next signal ends it at once. Processes that were forked leave these signals to the one that forked
them, and end with it.
"""

import contextlib
import ctypes
import functools
import importlib
import os
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from types import FrameType
from typing import Any

from lora_recipes.support import streams

ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

SAME = 0.5
"""Seconds within which a second signal is the first one again: `timeout` and schedulers signal a process and its group,
a closed terminal is told by the kernel and by the shell."""

LAUNCHER = "LORA_RECIPES_LAUNCHER"
"""The launcher's process, in the environment of those that it starts: accelerate's leaves no mark of its own."""

_ELASTIC = "TORCHELASTIC_RUN_ID"
"""In the environment of processes that torchrun starts."""

_PARENT_DEATH_SIGNAL = 1
"""PR_SET_PDEATHSIG of Linux's sys/prctl.h."""

AGAIN = "the same command goes on from the last checkpoint, or starts where there is none."

Handler = Callable[[int, FrameType | None], Any] | signal.Handlers


@dataclass
class _State:
    number: int = 0
    """Of the first signal while training."""
    since: float = 0.0
    """When it came, in seconds of time.monotonic."""
    before: dict[int, Any] = field(default_factory=dict)
    """While training: the handlers that were there."""
    mask: set[int] = field(default_factory=set)
    """What is blocked anyway, while a process is forked."""


_state = _State()


def handle(handler: Handler) -> dict[int, Any]:
    """Set a handler for these signals; gives those that it replaces.

    What is ignored stays so: nohup ignores SIGHUP, a shell SIGINT of what it runs in the background.
    """
    heeded = [number for number in ENDING if signal.getsignal(number) is not signal.SIG_IGN]
    return {number: signal.signal(number, handler) for number in heeded}


@functools.cache
def begin() -> None:
    """From now on one sentence is said before the end. For the program of a process, not for a library.

    Call it first: before training begins there are 30 seconds of imports, models and rows.
    """
    importlib.import_module("psutil")  # for a handler, which may come in the middle of another import
    _end_with_launcher()
    handle(lambda number, _: end(number, f"told to end while nothing is trained; {AGAIN}"))
    os.register_at_fork(before=_hold, after_in_parent=_release, after_in_child=_forked)


def wait_for_step() -> None:
    """Note a signal from now on, for `told`."""
    _state.number = 0
    _state.before = handle(_note)
    streams.outlive_terminal()


def step_is_over() -> None:
    """Set the handlers that were there before wait_for_step."""
    for number, handler in _state.before.items():
        signal.signal(number, handler)
    _state.before = {}
    streams.restore()


def told() -> int:
    """The signal that came since wait_for_step; 0 when none did."""
    return _state.number


def end(number: int, sentence: str) -> None:
    """End now: say the sentence, end what this process has started, and exit with 128 + the first signal's number."""
    import psutil

    for each in ENDING:
        signal.signal(each, signal.SIG_IGN)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # torch would raise an error for each data loader that is ended
    if sentence and os.environ.get("RANK", "0") == "0":
        streams.say(sentence)
    children = psutil.Process().children(recursive=True)
    for child in children:
        with contextlib.suppress(psutil.NoSuchProcess):
            child.kill()
    psutil.wait_procs(children, timeout=5)
    os._exit(128 + (_state.number or number))


def launched() -> bool:
    """Whether a launcher has started this process."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1 or bool({_ELASTIC, LAUNCHER} & set(os.environ))


def _note(number: int, _: FrameType | None) -> None:
    """Under a launcher only the first counts: the launcher passes on what its group got, and decides."""
    if not _state.number:
        _state.number, _state.since = number, time.monotonic()
        streams.outlive_readers()
    elif time.monotonic() - _state.since > SAME and not launched():
        end(number, f"told to end again, in the middle of a step; {AGAIN}")


def _end_with_launcher() -> None:
    """Get SIGTERM when the launcher that started this process is gone: torchrun, when killed, leaves its processes.

    Does nothing without a launcher, and elsewhere than on Linux.
    """
    if not launched():
        return
    _end_with_parent(signal.SIGTERM)
    if os.getppid() == 1 != int(os.environ.get(LAUNCHER, "1")):  # it was gone before that
        sys.exit(128 + signal.SIGTERM)


def _end_with_parent(number: int) -> None:
    if sys.platform.startswith("linux"):
        ctypes.CDLL(None).prctl(_PARENT_DEATH_SIGNAL, number)


def _hold() -> None:
    _state.mask = {int(number) for number in signal.pthread_sigmask(signal.SIG_BLOCK, ENDING)}


def _release() -> None:
    signal.pthread_sigmask(signal.SIG_SETMASK, _state.mask)


def _forked() -> None:
    """In a data loader of the trainer, whose rows the last step needs, or in a worker that prepares rows.

    Pools end their workers by SIGTERM. Data loaders end of themselves, and torch sets them a handler for SIGTERM: for
    them the signals stay blocked.
    """
    _end_with_parent(signal.SIGKILL)
    if _state.before:
        return
    for number in ENDING:
        signal.signal(number, signal.SIG_DFL if number == signal.SIGTERM else signal.SIG_IGN)
    _release()
