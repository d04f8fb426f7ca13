"""Ctrl-C in any script of the project: click's word and exit status 130, no traceback."""

import contextlib
import os
import signal
import sys
from collections.abc import Iterator

_PROCESS = os.getpid()
_unwinding = False


def abort(number: int, _: object) -> None:
    """End at once: an exception would be another one by the time it comes out of an import."""
    if os.getpid() == _PROCESS:  # Ctrl-C goes to what it has forked, too
        with contextlib.suppress(OSError):
            os.write(2, b"\nAborted!\n")
    if not _unwinding:
        os._exit(128 + number)
    signal.signal(number, lambda *_: os._exit(128 + number))
    sys.exit(128 + number)


@contextlib.contextmanager
def unwinding() -> Iterator[None]:
    """Inside, Ctrl-C leaves by SystemExit, so that what is half written is removed; a second one cuts that short."""
    global _unwinding
    _unwinding = True
    try:
        yield
    finally:
        _unwinding = False
