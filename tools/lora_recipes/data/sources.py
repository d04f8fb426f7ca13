"""Rows from where data lie: a file, a folder of files or a name on the Hub, with one split where `:split` follows."""

import contextlib
import logging
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from datasets import Dataset

_FORMATS = {".json": "json", ".jsonl": "json", ".csv": "csv", ".parquet": "parquet"}
_WITH_SPLIT = re.compile(r"(.+):([A-Za-z]\w*(?:\[[^]]*\])?)")  # or a part of it, as in name:test[:20]
_HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?")


def read(source: str) -> "dict[str, Dataset]":
    """The splits of a source by name; of a file it is `train`, as for Axolotl.

    Warns on stderr of files in a folder that belong to no split.
    Raises click.UsageError for a path that does not exist, click.ClickException for data that cannot be read.
    """
    import datasets

    datasets.disable_progress_bars()
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # a README without a header is no news
    path, split = _parted(source)
    with _plain_errors(source, path):
        options: dict[str, Any] = {"path": path}
        if Path(path).is_file():
            options = {"path": _format(Path(path)), "data_files": path}
        if Path(path).is_dir():
            _warn_of_unread(Path(path), datasets.load_dataset_builder(path).config.data_files)
        found = datasets.load_dataset(**options, split=split)
    return {split: found} if split else dict(found)


def only(source: str, why: str) -> "Dataset":
    """The rows of a source that has one split, or that names the one meant."""
    parts = read(source)
    if len(parts) > 1:
        raise click.UsageError(f"{source} has the splits {', '.join(parts)}; {why} as in {source}:{next(iter(parts))}.")
    return next(iter(parts.values()))


def texts(data: "Dataset", column: str, source: str, remedy: str) -> list[str]:
    """One column as texts, an empty cell as an empty text; `remedy` closes the error's sentence.

    Raises click.ClickException for a column that is not there and for a cell that is no text.
    """
    if column not in data.column_names:
        raise click.ClickException(f"{source} has no column {column!r}, only {', '.join(data.column_names)}; {remedy}.")
    cells = list(data[column])
    for row, cell in enumerate(cells):
        if cell is not None and not isinstance(cell, str):
            raise click.ClickException(
                f"{source}, row {row + 1}: {column!r} is {cell!r}, not a text; mend the row, or {remedy}."
            )
    return [cell or "" for cell in cells]


def questions(data: "Dataset", column: str, source: str) -> list[str]:
    """What each row asks: the question, and the `input` column where there is one, as in alpaca's data."""
    remedy = "choose a column with --question"
    asked = texts(data, column, source, remedy)
    if "input" not in data.column_names or column == "input":
        return asked
    return [f"{one}\n{two}".strip() for one, two in zip(asked, texts(data, "input", source, remedy), strict=True)]


def _parted(source: str) -> tuple[str, str | None]:
    named = None if Path(source).exists() else _WITH_SPLIT.fullmatch(source)
    path, split = named.groups() if named else (source, None)
    if not Path(path).exists() and (Path(path).suffix in _FORMATS or not _HUB_NAME.fullmatch(path)):
        raise click.UsageError(f"no file or folder {path}; give one, or a data set's name on the Hub.")
    return path, split


def _format(path: Path) -> str:
    if path.suffix not in _FORMATS:
        raise click.ClickException(f"{path}: what kind of file is it? Name it {', '.join(_FORMATS)}.")
    return _FORMATS[path.suffix]


def _warn_of_unread(folder: Path, data_files: dict[str, list[str]]) -> None:
    used = {Path(name).resolve() for names in data_files.values() for name in names}
    lying = [path for path in sorted(folder.rglob("*")) if path.suffix in _FORMATS and path.name != "build.json"]
    if unread := [path.name for path in lying if path.resolve() not in used]:
        click.echo(f"{folder}: not read, as no split or other kind of file: {', '.join(unread)}", err=True)


@contextlib.contextmanager
def _plain_errors(source: str, path: str) -> Iterator[None]:
    try:
        yield
    except click.ClickException:
        raise
    except Exception as error:  # datasets raises a score of types for a user's mistake
        from datasets.exceptions import DatasetNotFoundError

        away = not Path(path).exists()
        if away and isinstance(error, DatasetNotFoundError):
            raise click.ClickException(
                f"{source}: no such data set on the Hub, or none that you may read; check the name, or log in."
            ) from None
        if away and isinstance(error, (OSError, RuntimeError)):
            raise click.ClickException(f"{source}: the Hub cannot be reached; offline, give local files.") from None
        words = " ".join(str(error.__cause__ or error).split())[:300] or "it is empty or malformed"
        raise click.ClickException(
            f"{source} cannot be read: {words.rstrip('.')}. Check path, split and contents."
        ) from None
