"""Files that are whole or absent: written beside, flushed, renamed into place."""

import contextlib
import ctypes
import errno
import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from lora_recipes import ROOT

import click

_FULL = ("os error 28", "No space left on device", "PytorchStreamWriter failed", "unexpected pos", "iostream error")
"""How safetensors and torch say that a disk is full."""

_REMEDIES = {
    errno.ENOSPC: "free some disk space",
    errno.EDQUOT: "free some of your disk quota",
    errno.EROFS: "choose a folder that can be written",
    errno.EACCES: "choose a folder that you may write",
}

_UNFINISHED = ".unfinished"


@contextlib.contextmanager
def clear_errors(what: Path | str) -> Iterator[None]:
    """Say an operating-system error in one sentence with its remedy."""
    try:
        yield
    except Exception as error:
        if said := sentence(error, what):
            raise said from None
        if isinstance(error, OSError):
            raise click.ClickException(
                f"{error.filename or what}: cannot be written: {error.strerror}; choose another path and run the same "
                "command again."
            ) from None
        raise


def sentence(error: BaseException, what: Path | str) -> click.ClickException | None:
    """An error of a disk that is full or must not be written, as the operating system or a library says it."""
    if isinstance(error, OSError) and error.errno in _REMEDIES:
        return click.ClickException(
            f"{error.filename or what}: cannot be written: {error.strerror}; {_REMEDIES[error.errno]} and run the same "
            "command again."
        )
    if not isinstance(error, OSError) and any(words in str(error) for words in _FULL):
        return click.ClickException(f"{what}: the disk is full; free some space and run the same command again.")
    return None


def write_text(path: Path, text: str) -> None:
    """Write a file atomically. Raises click.ClickException; the previous file then stays."""
    write_bytes(path, text.encode("utf-8"))


def write_bytes(path: Path, data: bytes) -> None:
    """As write_text."""
    with clear_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        _remove_left(path)
        handle, temporary = _unfinished(path)
        try:
            with os.fdopen(handle, "wb") as file:  # and with it the lock, until the file is in its place
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
                os.chmod(temporary, 0o644)
                os.replace(temporary, path)
        except BaseException:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(temporary)
            raise


def _unfinished(path: Path) -> tuple[int, str]:
    """A new file beside `path`, open and locked, and its name."""
    while True:
        handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", suffix=_UNFINISHED, dir=path.parent)
        fcntl.flock(handle, fcntl.LOCK_EX)
        if os.fstat(handle).st_nlink:
            return handle, temporary
        os.close(handle)  # another process took it for left over before it was locked


def _remove_left(path: Path) -> None:
    """Remove what killed processes left of a file: what no living one has locked."""
    for left in path.parent.glob(f".{path.name}.*{_UNFINISHED}"):
        with contextlib.suppress(OSError), left.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            left.unlink()


@contextlib.contextmanager
def whole_folder(target: Path) -> Iterator[Path]:
    """A temporary folder beside the target, renamed to it at the end; nothing stays behind on an error.

    To be called with the target's lock held: what a killed process left of it is removed first.
    """
    with clear_errors(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        for left in target.parent.glob(f".{target.name}.*{_UNFINISHED}"):
            shutil.rmtree(left, ignore_errors=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=_UNFINISHED, dir=target.parent))
    try:
        with clear_errors(target):
            yield temporary
            os.chmod(temporary, 0o755)
            if target.exists():
                _exchange(temporary, target)
            else:
                os.replace(temporary, target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _exchange(one: Path, other: Path) -> None:
    """Let two folders change places: on Linux at once, so that a kill leaves either at its place or the other."""
    at_cwd, exchange = -100, 2  # AT_FDCWD and RENAME_EXCHANGE of Linux
    with contextlib.suppress(AttributeError):
        if ctypes.CDLL(None).renameat2(at_cwd, os.fsencode(one), at_cwd, os.fsencode(other), exchange) == 0:
            return
    between = one.with_name(one.name + ".old")
    os.replace(other, between)
    os.replace(one, other)
    os.replace(between, one)


def move_all(source: Path, target: Path) -> None:
    """Move the files of a folder into another one on the same disk, each whole, and remove the folder."""
    for path in sorted(source.iterdir()):
        with open(path, "rb") as file:
            os.fsync(file.fileno())
        os.replace(path, target / path.name)
    source.rmdir()


@contextlib.contextmanager
def locked(target: Path) -> Iterator[None]:
    """Hold the lock of a file or folder: a second process waits."""
    with _lock_file(target, "lock") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


@contextlib.contextmanager
def claimed(target: Path) -> Iterator[int]:
    """Hold a folder for hours of work; gives the descriptor that holds it, which forked processes share.

    Raises click.ClickException when another process holds it.
    """
    with _lock_file(target, "claim") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise click.ClickException(
                f"{target}: another process trains into it; wait for its end, or --set output_dir to another folder."
            ) from None
        yield handle


@contextlib.contextmanager
def _lock_file(target: Path, kind: str) -> Iterator[int]:
    """Its lock ends with the last process that has it open: a forked one keeps it."""
    with clear_errors(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(target.parent / f".{target.name}.{kind}", os.O_RDWR | os.O_CREAT, 0o644)
    try:
        yield handle
    finally:
        os.close(handle)


def require_writable(folder: Path) -> None:
    """Fail before the work, not after it, when a folder cannot take files."""
    with clear_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as probe:
            probe.write(b"\0" * 65536)  # a full disk lets an empty file through
            probe.flush()


def require_space(folder: Path, size: int) -> None:
    """Fail before the work when the disk of a folder has less than `size` bytes free."""
    free = shutil.disk_usage(folder).free
    if free < size:
        raise click.ClickException(
            f"{folder}: {size / 1e6:,.0f} MB are needed there and {free / 1e6:,.0f} MB are free; "
            "free some space, or choose another folder."
        )


def read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise click.ClickException(
            f"{relative(path)}: byte {error.start} is not UTF-8; save the file as UTF-8."
        ) from None
    except OSError as error:
        raise click.ClickException(f"{relative(path)}: cannot be read: {error.strerror}.") from None


def relative(path: Path) -> str:
    """A path as the user would write it: from the checkout's root where it lies inside."""
    try:
        return str(path.resolve().relative_to(ROOT))
    except ValueError:
        return str(path)
