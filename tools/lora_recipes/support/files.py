"""Files that are whole or absent: written under a temporary name, flushed, renamed into place."""

import contextlib
import ctypes
import errno
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lora_recipes import ROOT
from lora_recipes.support import ctrl_c, locks

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
def as_click_errors(what: Path | str) -> Iterator[None]:
    """Turn an operating-system error into a click.ClickException: one sentence with its remedy."""
    try:
        yield
    except Exception as error:
        if said := sentence(error, what):
            raise said from None
        if isinstance(error, OSError):
            raise _cannot_be_written(error, what, "choose another path") from None
        raise


def sentence(error: BaseException, what: Path | str) -> click.ClickException | None:
    """A full disk, or one that must not be written, as the operating system or a library reports it."""
    if isinstance(error, OSError):
        return _cannot_be_written(error, what, _REMEDIES[error.errno]) if error.errno in _REMEDIES else None
    if any(words in str(error) for words in _FULL):
        return click.ClickException(f"{what}: the disk is full; free some space and run the same command again.")
    return None


def _cannot_be_written(error: OSError, what: Path | str, remedy: str) -> click.ClickException:
    return click.ClickException(
        f"{error.filename or what}: cannot be written: {error.strerror}; {remedy} and run the same command again."
    )


def write_text(path: Path, text: str) -> None:
    """Write a file atomically. Raises click.ClickException; the previous file then stays."""
    write_bytes(path, text.encode("utf-8"))


def write_bytes(path: Path, data: bytes) -> None:
    """As write_text."""
    with as_click_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}{_UNFINISHED}")
        with os.fdopen(_open_locked(temporary), "wb") as file:
            try:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
                os.replace(temporary, path)
            except BaseException:
                temporary.unlink(missing_ok=True)
                raise


def _open_locked(temporary: Path) -> int:
    """The temporary file, empty and locked: a killed process's is written over, a living one's is waited for."""
    while True:
        handle = locks.take(temporary)
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(handle), os.stat(temporary)):
                os.truncate(handle, 0)
                return handle
        os.close(handle)  # the process that held it has renamed it into place


@contextlib.contextmanager
def whole_folder(target: Path) -> Iterator[Path]:
    """A temporary folder beside the target, renamed to it at the end; nothing stays behind on an error.

    To be called with the target's lock held: what a killed process left of it is removed first.
    """
    temporary = target.with_name(f".{target.name}{_UNFINISHED}")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        with ctrl_c.unwinding(), as_click_errors(target):
            temporary.mkdir(parents=True)
            yield temporary
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
def locked(target: Path, busy: str = "") -> Iterator[int]:
    """Hold the lock of a file or folder; gives the descriptor that holds it, which forked processes share.

    A second process waits; with `busy` it raises click.ClickException with that sentence instead. The lock ends with
    the last process that has the descriptor open.
    """
    with as_click_errors(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            handle = locks.take(target.parent / f".{target.name}.lock", wait=not busy)
        except BlockingIOError:
            raise click.ClickException(busy) from None
    try:
        yield handle
    finally:
        os.close(handle)


def require_writable(folder: Path) -> None:
    """Fail before the work, not after it, when a folder cannot take files."""
    with as_click_errors(folder):
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


def read_bytes(path: Path) -> bytes:
    """The content of a regular file: one that is a pipe or a device may have no end, or not begin.

    Raises click.ClickException for what is none, or cannot be read.
    """
    try:
        if path.exists() and not path.is_file():
            raise click.ClickException(f"{relative(path)}: is no regular file; put one in its place.")
        return path.read_bytes()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise click.ClickException(f"{relative(path)}: cannot be read: {reason}.") from None


def read_text(path: Path) -> str:
    """As read_bytes, of UTF-8."""
    try:
        return read_bytes(path).decode("utf-8").replace("\r\n", "\n").replace("\r", "\n")
    except UnicodeDecodeError as error:
        raise click.ClickException(
            f"{relative(path)}: byte {error.start} is not UTF-8; save the file as UTF-8."
        ) from None


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object. Raises click.ClickException for anything else, and where its texts cannot be written as UTF-8."""
    try:
        found = json.loads(read_text(path))
        json.dumps(found, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as error:
        raise click.ClickException(f"{path}: not readable as JSON ({error}); restore it.") from None
    if not isinstance(found, dict):
        raise click.ClickException(f"{path}: no JSON object; restore it.")
    return found


def sha256(path: Path) -> str:
    """The digest of a file's bytes, in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def require_ours(folder: Path, record: str, command: str) -> None:
    """Refuse to replace a folder that holds more than the files that a command has noted in its record there."""
    if folder.exists() and not folder.is_dir():
        raise click.ClickException(f"{folder} is a file; choose another -o.")
    held = {path.name for path in folder.iterdir()} if folder.exists() else set()
    if record in held:
        held -= {record, *read_json(folder / record).get("files", {})}
    if held:
        raise click.ClickException(
            f"{folder} holds {min(held)}, which no {command} wrote; move it, or choose another -o."
        )


def relative(path: Path) -> str:
    """A path as the user would write it: from the checkout's root where it lies inside."""
    try:
        return str(path.resolve().relative_to(ROOT))
    except ValueError:
        return str(path)
