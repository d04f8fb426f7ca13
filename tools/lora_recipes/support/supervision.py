"""A command whose end is the end of all that it started: no trainer goes on by itself on a rented machine.

Axolotl starts a launcher and the launcher its trainers. A launcher that is told to end, or killed, leaves them behind.
So a process between the command and Axolotl adopts all that comes of it (Linux's child subreaper) and, when told to
end or when the command is gone, tells each of them but what a trainer started, and kills what is left after a time of
grace.
"""

import contextlib
import ctypes
import os
import signal
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

GRACE = 120
"""Seconds between SIGTERM and SIGKILL: for a step, a due evaluation and a checkpoint."""

_LEFT_OVER = 20
"""Seconds for what outlives the work, as W&B's service does while it writes its last lines."""

_PARENT_DEATH_SIGNAL, _NAME, _CHILD_SUBREAPER = 1, 15, 36
"""PR_SET_PDEATHSIG, PR_SET_NAME and PR_SET_CHILD_SUBREAPER of Linux's sys/prctl.h."""

_TRAINER = "lora-trainer"


def run(work: Callable[[], None]) -> None:
    """Do the work in a process of its own and exit as it does; supervised on Linux, elsewhere in this process."""
    if not sys.platform.startswith("linux"):
        return work()
    sys.stdout.flush()
    sys.stderr.flush()
    command = os.getpid()
    supervisor = os.fork()
    if supervisor:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal's Ctrl-C reaches the trainer by itself
        signal.signal(signal.SIGTERM, lambda *_: os.kill(supervisor, signal.SIGTERM))
        sys.exit(_exit_status(os.waitpid(supervisor, 0)[1]))
    interrupted = signal.signal(signal.SIGINT, signal.SIG_IGN)
    told: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _: told.append(number))
    ctypes.CDLL(None).prctl(_CHILD_SUBREAPER, 1)
    end_with_parent()
    if os.getppid() != command:  # it was gone before that
        os._exit(128 + signal.SIGTERM)
    worker = os.fork()
    if worker:
        os._exit(_outlive(worker, told))
    signal.signal(signal.SIGINT, interrupted)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    return work()


def end_with_parent() -> None:
    """Be told to end when the process that started this one is gone. Does nothing elsewhere than on Linux."""
    if sys.platform.startswith("linux"):
        ctypes.CDLL(None).prctl(_PARENT_DEATH_SIGNAL, signal.SIGTERM)


def name_trainer() -> None:
    """Be known as a trainer: it is told to end, and what it started is not: it needs its loaders for a last step."""
    if sys.platform.startswith("linux"):
        ctypes.CDLL(None).prctl(_NAME, _TRAINER.encode())


def _outlive(worker: int, told: list[int]) -> int:
    """Wait until no process is left; the exit status of the command."""
    status = 0
    terminate_at, kill_at = float("inf"), float("inf")
    while True:
        try:
            process, found = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return 128 + signal.SIGTERM if told else status
        if process == worker:
            status, terminate_at = _exit_status(found), time.monotonic() + _LEFT_OVER
        if process:
            continue
        if kill_at == float("inf") and (told or time.monotonic() > terminate_at):
            kill_at = time.monotonic() + GRACE
            _tell(descendants(os.getpid(), below_trainers=False), signal.SIGTERM)
        if time.monotonic() > kill_at:
            _tell(descendants(os.getpid()), signal.SIGKILL)
        time.sleep(0.1)


def _exit_status(status: int) -> int:
    code = os.waitstatus_to_exitcode(status)
    return code if code >= 0 else 128 - code


def _tell(processes: Iterable[int], number: int) -> None:
    for process in processes:
        with contextlib.suppress(ProcessLookupError):
            os.kill(process, number)


def descendants(process: int, below_trainers: bool = True) -> Iterator[int]:
    """The processes that come of one, by /proc; those that a trainer started only where they are asked for."""
    parents, trainers = {}, set()
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            name, _, rest = stat.read_text().partition("(")[2].rpartition(")")
            parents[int(stat.parent.name)] = int(rest.split()[1])
            if name == _TRAINER and not below_trainers:
                trainers.add(int(stat.parent.name))
    found = {process}
    while more := {child for child, parent in parents.items() if parent in found - trainers} - found:
        found |= more
        yield from more
