"""Files that are whole or absent: written beside, flushed, renamed into place."""

import contextlib
import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from lora_recipes import ROOT

import click


@contextlib.contextmanager
def clear_errors(what: Path | str) -> Iterator[None]:
    """Say an operating-system error in one sentence with its remedy."""
    try:
        yield
    except Exception as error:
        if not isinstance(error, OSError):
            if "os error 28" in str(error) or "No space left on device" in str(error):  # safetensors' and torch's own
                raise click.ClickException(
                    f"{what}: the disk is full; free some space and run the same command again."
                ) from None
            raise
        path = error.filename or what
        remedies = {
            28: "free some disk space",
            30: "choose a folder that can be written",
            13: "choose a folder that you may write",
        }
        remedy = remedies.get(error.errno or 0, "choose another path")
        raise click.ClickException(
            f"{path}: cannot be written: {error.strerror}; {remedy} and run the same command again."
        ) from None


def write_text(path: Path, text: str) -> None:
    """Write a file atomically. Raises click.ClickException; the previous file then stays."""
    with clear_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        try:
            with os.fdopen(handle, "w", encoding="utf-8", newline="\n") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            os.chmod(temporary, 0o644)
            os.replace(temporary, path)
        except BaseException:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(temporary)
            raise


@contextlib.contextmanager
def whole_folder(target: Path) -> Iterator[Path]:
    """A temporary folder beside the target, renamed to it at the end; nothing stays behind on an error."""
    with clear_errors(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    try:
        with clear_errors(target):
            yield temporary
            os.chmod(temporary, 0o755)
            if target.exists():
                old = temporary.with_name(temporary.name + ".old")
                os.replace(target, old)
                os.replace(temporary, target)
                shutil.rmtree(old)
            else:
                os.replace(temporary, target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


@contextlib.contextmanager
def locked(target: Path) -> Iterator[None]:
    """Hold the lock of a file or folder: a second process waits."""
    with clear_errors(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(target.parent / f".{target.name}.lock", os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
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
