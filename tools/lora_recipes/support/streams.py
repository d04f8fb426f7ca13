"""Standard output and error that outlive their readers: a terminal that is closed, a `tee` that got Ctrl-C too.

Each print would be an error otherwise, before the step is finished and its checkpoint saved.
"""

import _thread
import atexit
import contextlib
import os
import stat
import sys
from collections.abc import Callable

from lora_recipes.support import terminal

_targets: dict[int, int] = {}
"""1 and 2, where they are such a stream -> a descriptor of what they were."""
_pumping: dict[int, _thread.LockType] = {}
"""The same -> held until all that was printed is written there."""


def outlive_terminal() -> None:
    """For the time of training: a closed terminal is an error before it is a signal."""
    _outlive(os.isatty)


def outlive_readers() -> None:
    """From a signal on. Before it, a pipe that nobody reads is to end the process."""
    _outlive(lambda stream: not stat.S_ISREG(os.fstat(stream).st_mode))


def restore() -> None:
    """Give both back what they were, when what was printed before is written; the end of the process does, too."""
    for printed in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            printed.flush()
    while _targets:
        stream, target = _targets.popitem()
        os.dup2(target, stream)
        _pumping[stream].acquire(timeout=1)  # for ever, where a data loader has the stream open still


def say(sentence: str) -> None:
    """Write to stderr past all buffers; it may be closed."""
    stderr = _targets.get(2, 2)
    with contextlib.suppress(OSError):
        os.write(stderr, ("\n" * os.isatty(stderr) + terminal.visible(sentence) + "\n").encode())


def _outlive(chosen: Callable[[int], bool]) -> None:
    atexit.register(restore)
    for stream in {1, 2} - _targets.keys():
        with contextlib.suppress(OSError):
            if chosen(stream):
                _targets[stream], (source, entry) = os.dup(stream), os.pipe()
                os.dup2(entry, stream)
                os.close(entry)
                _pumping[stream] = _thread.allocate_lock()
                _pumping[stream].acquire()
                # Not a threading.Thread: a signal may have come while its locks are held.
                _thread.start_new_thread(_pump, (source, _targets[stream], _pumping[stream]))


def _pump(source: int, target: int, pumping: _thread.LockType) -> None:
    while data := os.read(source, 65536):
        with contextlib.suppress(OSError):
            os.write(target, data)
    pumping.release()
