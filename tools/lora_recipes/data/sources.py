"""The one reader of data sets: a file, a folder of files or a name on the Hub; errors are one sentence."""

import contextlib
import logging
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lora_recipes.data import builders, local_files, reading
from lora_recipes.data.local_files import FORMATS
from lora_recipes.data.reading import Rows
from lora_recipes.support import libraries

import click

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
) -> dict[str, Rows]:
    """The splits of a data set by name; with `split` that one only, which may be a part, as in `train[:80%]`.

    A file has the one split `train`, as for Axolotl; of a file with an unusual ending `ds_type` says what it is.
    Files on this machine are read as they are written, by their literal names and without a cache.
    Raises click.ClickException for data that cannot be read.
    """
    import datasets

    builders.require_known(path, ds_type)
    datasets.disable_progress_bars()
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # a README without a header is no news
    with _errors_in_a_sentence(path, split):
        if not data_files and (saved := _saved(path)):
            return _chosen(saved, split)
        here = local_files.find(path, name, data_files, ds_type)
        if here and not here.compressed:
            wanted = [split] if split in here.files else list(here.files)
            return _chosen({part: here.rows(part) for part in wanted}, split)
        given = {"path": path, "name": name, "data_files": data_files, "revision": revision}
        return _by_library(split, **(here.by_library if here else given))


def _chosen(parts: dict[str, Rows], split: str | None) -> dict[str, Rows]:
    """All parts, or what `split` names of them. Raises ValueError for one that is not there."""
    from datasets import ReadInstruction

    if split is None or split in parts:
        return parts if split is None else {split: parts[split]}
    sizes = {name: len(part) for name, part in parts.items()}
    slices = ReadInstruction.from_spec(split).to_absolute(sizes)
    rows = [row for one in slices for row in parts[one.splitname].rows[one.from_ : one.to]]
    return {split: Rows(parts[slices[0].splitname].columns, rows)}


def _saved(path: str) -> dict[str, Rows]:
    """The parts of a folder that save_to_disk wrote, as Axolotl takes them: a single one is `train`. Else none."""
    import datasets

    if not Path(path).is_dir():
        return {}
    try:
        found = datasets.load_from_disk(path)
    except FileNotFoundError:
        return {}
    parts = found if isinstance(found, datasets.DatasetDict) else {"train": found}
    return {name: reading.joined(reading.of_dataset(part), path) for name, part in parts.items()}


def _by_library(split: str | None, **given: Any) -> dict[str, Rows]:
    """Data on the Hub and compressed files, read by the datasets library, with the types that it guesses."""
    import datasets

    builders.kind_of(datasets.load_dataset_builder(**given))
    found = datasets.load_dataset(**given, split=split)
    parts = found if split is None else {split: found}
    return {name: reading.joined(reading.of_dataset(part), given["path"]) for name, part in parts.items()}


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
        if refused := libraries.cache_refused(error):
            message = f"{refused}."
        elif not Path(path).exists() and libraries.is_offline(error):
            message = f"{path}: {words}; offline, give local files."
        elif not Path(path).exists() and isinstance(error, DatasetNotFoundError):
            message = f"{path}: no such data set on the Hub, or none that you may read; check the name, or log in."
        else:
            words = words if str(cause) else "it is empty or malformed"
            shown = f"{path} ({split})" if split else path
            message = f"{shown} cannot be read: {words}. Check path, split and contents."
        raise click.ClickException(message) from None


def read(source: str) -> dict[str, Rows]:
    """The splits of a SOURCE by name: all, or the one that follows a colon, as in `name:test[:20]`.

    Warns on stderr of files in a folder that belong to no split.
    Raises click.UsageError for a path that does not exist, click.ClickException for data that cannot be read.
    """
    path, split = _parted(source)
    if Path(path).is_file() and Path(path).suffix not in FORMATS:
        raise click.ClickException(f"{path}: what kind of file is it? Name it {', '.join(FORMATS)}.")
    found = load(path, split)
    if Path(path).is_dir():
        _warn_of_unread(path)
    return found


def _parted(source: str) -> tuple[str, str | None]:
    named = None if Path(source).exists() else _WITH_SPLIT.fullmatch(source)
    path, split = named.groups() if named else (source, None)
    if not Path(path).exists() and (Path(path).suffix in FORMATS or not _HUB_NAME.fullmatch(path)):
        raise click.UsageError(f"no file or folder {path}; give one, or a data set's name on the Hub.")
    return path, split


def _warn_of_unread(path: str) -> None:
    found = None if _saved(path) else local_files.find(path, None, None, None)
    if found is None:
        return
    used = {Path(name).resolve() for names in found.files.values() for name in names}
    present = [one for one in sorted(Path(path).rglob("*")) if one.suffix in FORMATS and one.name != "build.json"]
    if unread := [one.name for one in present if one.resolve() not in used]:
        click.echo(f"{path}: not read, as no split or other kind of file: {', '.join(unread)}", err=True)


def only(source: str, why: str) -> Rows:
    """The rows of a source that has one split, or that names the one meant."""
    parts = read(source)
    if len(parts) > 1:
        raise click.UsageError(f"{source} has the splits {', '.join(parts)}; {why} as in {source}:{next(iter(parts))}.")
    return next(iter(parts.values()))


def texts(data: Rows, column: str, source: str, remedy: str) -> list[str]:
    """One column as texts, an empty cell as an empty text; `remedy` closes the error's sentence.

    Raises click.ClickException for a column that is not there and for a cell that is no text.
    """
    if column not in data.columns:
        raise click.ClickException(f"{source} has no column {column!r}, only {', '.join(data.columns)}; {remedy}.")
    cells = [row[column] for row in data.rows]
    for row, cell in enumerate(cells):
        if cell is not None and not isinstance(cell, str):
            raise click.ClickException(
                f"{source}, row {row + 1}: {column!r} is {cell!r}, not a text; correct the row, or {remedy}."
            )
    return [cell or "" for cell in cells]


def questions(data: Rows, column: str, source: str) -> list[str]:
    """What each row asks: the question, and the `input` column where there is one, as in alpaca's data."""
    remedy = "choose a column with --question"
    asked = texts(data, column, source, remedy)
    if "input" not in data.columns or column == "input":
        return asked
    return [f"{one}\n{two}".strip() for one, two in zip(asked, texts(data, "input", source, remedy), strict=True)]
