"""Locks on open files, which end with the processes that hold them; not every file system has any."""

import fcntl
import os
from pathlib import Path

import click

_told: set[Path] = set()
"""Folders of which it was said that they cannot be locked."""


def take(path: Path, wait: bool = True) -> int:
    """Open and lock a file; gives the descriptor that holds the lock.

    Where the file system has no locks (NFS without its lock daemon, some of containers and clusters) it says so once
    and goes on without. Raises BlockingIOError when another process holds it and `wait` is false, else OSError.
    """
    handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        os.close(handle)
        raise
    except OSError as error:
        _say_once(path.parent, error)
    except BaseException:  # of a signal's handler
        os.close(handle)
        raise
    return handle


def _say_once(folder: Path, error: OSError) -> None:
    if folder not in _told:
        _told.add(folder)
        click.echo(
            f"{folder}: files cannot be locked there ({error.strerror}); going on without, so let no second command "
            "write there at the same time.",
            err=True,
        )
