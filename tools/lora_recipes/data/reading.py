"""Files of rows, read as they are written: a text stays a text, whatever it looks like, and none is unpickled.

The datasets library guesses types: numbers and missing cells in a CSV file, dates in a JSON file.
"""

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

_MOST_COLUMNS = 1000
_DEEPEST = 64
"""Lists and mappings in each other; pyarrow, with which Axolotl reads, ends the process at some thousands."""


@dataclass(frozen=True)
class Rows:
    """The rows of a split. Each has all columns, with None where its file has nothing."""

    columns: list[str]
    rows: list[dict[str, Any]]

    def __len__(self) -> int:
        return len(self.rows)


def joined(rows: Iterable[dict[str, Any]], source: str) -> Rows:
    """Rows that may lack columns. Raises click.ClickException for more columns than a data set has."""
    found = list(rows)
    columns: dict[str, None] = {}
    for number, row in enumerate(found, 1):
        columns.update(dict.fromkeys(row))
        if len(columns) > _MOST_COLUMNS:
            raise click.ClickException(
                f"{source}, row {number}: {len(columns):,} columns, where a question and an answer were expected; "
                f"leave out all that is not trained on (at most {_MOST_COLUMNS:,})."
            )
    return Rows(list(columns), [{name: row.get(name) for name in columns} for row in found])


def of_file(kind: str, path: Path, options: dict[str, Any]) -> list[dict[str, Any]]:
    """The rows of a file that is json, csv, text, parquet or arrow; `options` are pandas' for a CSV file.

    Raises click.ClickException for text that is malformed, and what pandas and pyarrow raise.
    """
    if kind == "json":
        return list(_json(path))
    if kind == "csv":
        return _csv(path, options)
    if kind == "text":
        return [{"text": line.rstrip("\r\n")} for _, line in _lines(path)]
    from datasets import Dataset

    if kind == "arrow":
        return of_dataset(Dataset.from_file(str(path), in_memory=True))
    import pyarrow.parquet
    from datasets.table import InMemoryTable

    with path.open("rb") as file:
        return of_dataset(Dataset(InMemoryTable(pyarrow.parquet.ParquetFile(file).read())))


def of_dataset(data: Any) -> list[dict[str, Any]]:
    """The rows of a datasets.Dataset, with what it keeps as JSON decoded, as Axolotl sees it; no images."""
    if "Json(" not in repr(data.features):
        return list(data.to_list())
    columns = data.with_format(None)[:]
    return [dict(zip(columns, cells, strict=True)) for cells in zip(*columns.values(), strict=True)]


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            try:
                yield number, line.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                raise click.ClickException(
                    f"{path}, line {number}: byte {error.start + 1} is not UTF-8; save the file as UTF-8."
                ) from None


def _json(path: Path) -> Iterator[dict[str, Any]]:
    """An object a line, or one list of objects or of texts."""
    lines = ((number, line) for number, line in _lines(path) if not line.isspace())
    first, line = next(lines, (1, ""))
    if not line:
        raise click.ClickException(f"{path} cannot be read: it is empty; give a file with rows.")
    if line.lstrip().startswith("["):
        whole = "\n" * (first - 1) + "".join(text for _, text in _lines(path)).lstrip()
        for number, row in enumerate(_parsed(path, 1, whole), 1):
            yield _row(f"{path}, row {number}", {"text": row} if isinstance(row, str) else row)
        return
    yield _row(f"{path}, line {first}", _parsed(path, first, line.rstrip()))
    for number, line in lines:
        yield _row(f"{path}, line {number}", _parsed(path, number, line.rstrip()))


def _parsed(path: Path, line: int, text: str) -> Any:
    try:
        found = json.loads(text)
        if "\\u" in text:
            json.dumps(found, ensure_ascii=False).encode()
    except json.JSONDecodeError as error:
        place = f"line {line + error.lineno - 1}"
        raise click.ClickException(
            f"{path}, {place} cannot be read: {error.msg} (column {error.colno}); write one JSON object a line."
        ) from None
    except RecursionError:
        raise click.ClickException(_too_deep(f"{path}, line {line}")) from None
    except UnicodeEncodeError:
        raise click.ClickException(
            f"{path}, line {line}: half of a pair of \\ud800 escapes, which is no character; correct the text."
        ) from None
    except ValueError as error:  # a number of thousands of digits
        raise click.ClickException(f"{path}, line {line} cannot be read: {error}; write it as text.") from None
    return found


def _row(place: str, row: Any) -> dict[str, Any]:
    if not isinstance(row, dict):
        found = json.dumps(row, ensure_ascii=False)
        shown = found if len(found) <= 40 else f"{found[:39]}…"
        raise click.ClickException(f"{place}: {shown}, where a row was expected; delete the line.")
    level = list(row.values())
    for _ in range(_DEEPEST):
        level = [inner for value in level for inner in _within(value)]
        if not level:
            return row
    raise click.ClickException(_too_deep(place))


def _within(value: Any) -> Iterable[Any]:
    if isinstance(value, dict):
        return value.values()
    return value if isinstance(value, list) else ()


def _too_deep(place: str) -> str:
    return f"{place}: lists and mappings are nested more than {_DEEPEST} deep; write such a value as a text."


def _csv(path: Path, options: dict[str, Any]) -> list[dict[str, Any]]:
    import pandas

    if not options.get("encoding"):
        for _ in _lines(path):  # the line that is not UTF-8, which pandas does not name
            pass
    as_written = {"dtype": str, "keep_default_na": False, "na_filter": False, "chunksize": None}
    with path.open("rb") as file:
        frame = pandas.read_csv(file, **{**options, **as_written})
    if not isinstance(frame.index, pandas.RangeIndex):
        raise click.ClickException(
            f"{path}: rows have more cells than the first line has columns; put texts with commas in quotes."
        )
    joined([dict.fromkeys(frame.columns)], str(path))  # before 20,000 columns are taken apart
    return list(frame.to_dict("records"))
