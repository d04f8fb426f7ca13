"""The one reader of data sets: a file, a folder of files or a name on the Hub; errors are one sentence."""

import contextlib
import logging
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lora_recipes.support import libraries

import click

if TYPE_CHECKING:
    from datasets import Dataset

_FORMATS = {".json": "json", ".jsonl": "json", ".csv": "csv", ".parquet": "parquet"}
"""What a SOURCE of tools/data.py may be."""
_OTHER_FORMATS = {".arrow": "arrow", ".txt": "text"}
"""What Axolotl takes as well; a file with any other ending is JSON to it."""
_TEXT = (".json", ".jsonl", ".csv", ".txt")
_WITH_SPLIT = re.compile(r"(.+):([A-Za-z]\w*(?:\[[^]]*\])?)")  # or a part of it, as in name:test[:20]
_HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?")


def load(
    path: str,
    split: str | None = None,
    *,
    name: str | None = None,
    data_files: Any = None,
    ds_type: str | None = None,
    revision: str | None = None,
) -> Any:
    """One split of a data set as a datasets.Dataset, or without `split` a DatasetDict of all.

    A file has the one split `train`, as for Axolotl; of a file with an unusual ending `ds_type` says what it is.
    Raises click.ClickException for data that cannot be read.
    """
    import datasets

    datasets.disable_progress_bars()
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # a README without a header is no news
    local = Path(path)
    with _errors_in_a_sentence(path, split):
        if local.is_file():
            kind = ds_type or {**_FORMATS, **_OTHER_FORMATS}.get(local.suffix, "json")
            _require_text(local)
            return datasets.load_dataset(kind, data_files=path, split=split)
        where = {
            "path": path,
            "name": name,
            "data_files": data_files,
            "revision": revision if not local.exists() else None,
        }
        if local.exists():
            for files in (datasets.load_dataset_builder(**where).config.data_files or {}).values():
                for file in files:
                    _require_text(Path(file))
        return datasets.load_dataset(**where, split=split)


def _require_text(path: Path) -> None:
    """Refuse what datasets reads in silence, or, a JSON file of nulls, ends the process with (pyarrow's read_json)."""
    if path.suffix not in _TEXT:
        return
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            try:
                line.decode("utf-8")
            except UnicodeDecodeError as error:
                raise click.ClickException(
                    f"{path}, line {number}: byte {error.start + 1} is not UTF-8; save the file as UTF-8."
                ) from None
            if number == 1 and path.suffix != ".csv" and line.lstrip().startswith(b"null"):
                raise click.ClickException(f"{path}, line 1: null, where a row was expected; delete the line.")


@contextlib.contextmanager
def _errors_in_a_sentence(path: str, split: str | None) -> Iterator[None]:
    try:
        yield
    except click.ClickException:
        raise
    except Exception as error:  # datasets raises a dozen types for a user's mistake
        from datasets.exceptions import DatasetNotFoundError

        cause = error.__cause__ or error
        words = libraries.reason(error if libraries.is_offline(error) else cause, 300).rstrip(".")
        if not Path(path).exists() and libraries.is_offline(error):
            message = f"{path}: {words}; offline, give local files."
        elif not Path(path).exists() and isinstance(error, DatasetNotFoundError):
            message = f"{path}: no such data set on the Hub, or none that you may read; check the name, or log in."
        else:
            words = words if str(cause) else "it is empty or malformed"
            shown = f"{path} ({split})" if split else path
            message = f"{shown} cannot be read: {words}. Check path, split and contents."
        raise click.ClickException(message) from None


def read(source: str) -> "dict[str, Dataset]":
    """The splits of a SOURCE by name: all, or the one that follows a colon, as in `name:test[:20]`.

    Warns on stderr of files in a folder that belong to no split.
    Raises click.UsageError for a path that does not exist, click.ClickException for data that cannot be read.
    """
    path, split = _parted(source)
    if Path(path).is_file() and Path(path).suffix not in _FORMATS:
        raise click.ClickException(f"{path}: what kind of file is it? Name it {', '.join(_FORMATS)}.")
    found = load(path, split)
    if Path(path).is_dir():
        _warn_of_unread(Path(path))
    return {split: found} if split else dict(found)


def _parted(source: str) -> tuple[str, str | None]:
    named = None if Path(source).exists() else _WITH_SPLIT.fullmatch(source)
    path, split = named.groups() if named else (source, None)
    if not Path(path).exists() and (Path(path).suffix in _FORMATS or not _HUB_NAME.fullmatch(path)):
        raise click.UsageError(f"no file or folder {path}; give one, or a data set's name on the Hub.")
    return path, split


def _warn_of_unread(folder: Path) -> None:
    import datasets

    data_files = datasets.load_dataset_builder(str(folder)).config.data_files
    used = {Path(name).resolve() for names in data_files.values() for name in names}
    present = [path for path in sorted(folder.rglob("*")) if path.suffix in _FORMATS and path.name != "build.json"]
    if unread := [path.name for path in present if path.resolve() not in used]:
        click.echo(f"{folder}: not read, as no split or other kind of file: {', '.join(unread)}", err=True)


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
                f"{source}, row {row + 1}: {column!r} is {cell!r}, not a text; correct the row, or {remedy}."
            )
    return [cell or "" for cell in cells]


def questions(data: "Dataset", column: str, source: str) -> list[str]:
    """What each row asks: the question, and the `input` column where there is one, as in alpaca's data."""
    remedy = "choose a column with --question"
    asked = texts(data, column, source, remedy)
    if "input" not in data.column_names or column == "input":
        return asked
    return [f"{one}\n{two}".strip() for one, two in zip(asked, texts(data, "input", source, remedy), strict=True)]
