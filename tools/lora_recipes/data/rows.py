"""The rows that a run file names: questions and answers for training, validation and test."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lora_recipes.config.runfile import RunFile
from lora_recipes.data.prompts import PromptFormat, prompt_format
from lora_recipes.support import libraries

import click

_TEXT = (".json", ".jsonl", ".csv", ".txt")
UNDERSTOOD = {"path", "name", "split", "type", "data_files", "ds_type", "revision"}


def load_rows(run: RunFile, part: str) -> list[dict[str, Any]]:
    """The rows of `train`, `validation` (the run file's test_datasets) or `test`, in file order.

    `test` is the split of that name of the first training set. Where there is none and the training
    set is a slice (`train[:80%]`), it is what the run file's slices leave over. A split that is none of
    these words is taken as it is, as in `test[:20]`.
    Raises click.ClickException for data that are missing, empty, malformed or lack a column.
    """
    return [row for rows, _ in load_parts(run, part) for row in rows]


def load_parts(run: RunFile, part: str) -> list[tuple[list[dict[str, Any]], PromptFormat]]:
    """As load_rows, one list a data set with its prompt format."""
    key = "test_datasets" if part == "validation" else "datasets"
    entries = run.config.get(key) or []
    if part not in ("train", "validation"):
        entries = [{**entries[0], "split": part}]
    return [load_entry(run, key, index, entry) for index, entry in enumerate(entries)]


def load_entry(run: RunFile, key: str, index: int, entry: dict[str, Any]) -> tuple[list[dict[str, Any]], PromptFormat]:
    for name in entry:
        if name not in UNDERSTOOD:
            raise run.error(
                f"{key}.{index}.{name}", f"only Axolotl knows this; here {', '.join(sorted(UNDERSTOOD))} work."
            )
    if not isinstance(entry.get("path"), str) or not entry["path"].strip():
        raise run.error(f"{key}.{index}.path", "missing; give a file, a folder or a name on the Hub.")
    fmt = prompt_format(run, index, key)
    with _plain_errors(run, f"{key}.{index}", entry):
        data = _load_dataset(run, entry)
    missing = [column for column in fmt.columns if column not in data.column_names]
    if missing:
        raise run.error(
            f"{key}.{index}.type",
            f"{entry['path']} ({entry.get('split')}) has no column {missing[0]!r}, "
            f"only {', '.join(data.column_names)}; set field_instruction and field_output to columns that it has.",
        )
    if not len(data):
        raise run.error(f"{key}.{index}.path", f"{entry['path']} ({entry.get('split')}) has no rows; nothing to do.")
    rows = data.to_list()
    for number, row in enumerate(rows):
        for column in fmt.columns:
            if not isinstance(row[column], str) or not row[column].strip():
                raise run.error(
                    f"{key}.{index}.path",
                    f"{entry['path']} ({entry.get('split')}), row {number + 1}: {column!r} is {row[column]!r}; "
                    "each row needs a text there: mend or delete the row.",
                )
    return rows, fmt


def _load_dataset(run: RunFile, entry: dict[str, Any]) -> Any:
    split = str(entry.get("split") or "train")
    if split.partition("[")[0] == "test" and "[" in str(run.config["datasets"][0].get("split")):
        return _test_of_slices(run, entry, split)
    return read(run, entry, split)


def _test_of_slices(run: RunFile, entry: dict[str, Any], split: str) -> Any:
    """`test`, or a slice of it, of a data set that the run file divides itself."""
    import datasets

    splits = read(run, entry, None)
    if "test" not in splits:
        splits["test"] = _left_over(run, entry, splits)
    found = [splits[name].select(bounds) for name, bounds in _bounds(split, splits)]
    return datasets.concatenate_datasets(found)


def _left_over(run: RunFile, entry: dict[str, Any], splits: Any) -> Any:
    """The rows of the first training set's whole split that no slice of the run file takes."""
    base = str(run.config["datasets"][0]["split"]).partition("[")[0]
    used: set[int] = set()
    for other in [*run.config["datasets"], *(run.config.get("test_datasets") or [])]:
        if all(other.get(key) == entry.get(key) for key in ("path", "name")):
            for name, bounds in _bounds(str(other.get("split") or "train"), splits):
                used |= set(bounds) if name == base else set()
    rest = [number for number in range(len(splits[base])) if number not in used]
    if not rest:
        raise run.error(
            "datasets.0.split",
            f"datasets and test_datasets take every row of {base}, none is left for the test; "
            "take slices that leave some, as in train[:80%] and train[80%:90%].",
        )
    return splits[base].select(rest)


def _bounds(split: str, splits: Any) -> list[tuple[str, range]]:
    """A split's slices as the names and row numbers that datasets reads them as."""
    from datasets import ReadInstruction

    absolute = ReadInstruction.from_spec(split).to_absolute({name: len(rows) for name, rows in splits.items()})
    return [(part.splitname, range(part.from_, part.to)) for part in absolute]


def read(run: RunFile, entry: dict[str, Any], split: str | None) -> Any:
    """One split of a data set, or all of them by name."""
    import datasets

    datasets.disable_progress_bars()
    local = run.path(entry["path"])
    where = {"path": entry["path"], "data_files": entry.get("data_files"), "revision": entry.get("revision")}
    if local.is_file():  # a file has a train split only, as for Axolotl: asked for another, datasets says so
        where = {"path": _file_type(local.suffix, entry), "data_files": str(local)}
    elif local.is_dir():
        where = {"path": str(local), "data_files": entry.get("data_files")}
    where["name"] = entry.get("name")
    if local.exists():
        for named in (datasets.load_dataset_builder(**where).config.data_files or {}).values():
            for path in named:
                _require_text(Path(path))
    return datasets.load_dataset(**where, split=split)


def _require_text(path: Path) -> None:
    """What datasets reads without a word, or, a JSON file of nulls, ends the process with (pyarrow's read_json)."""
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


def _file_type(suffix: str, entry: dict[str, Any]) -> str:
    known = {".csv": "csv", ".parquet": "parquet", ".arrow": "arrow", ".txt": "text"}
    return str(entry.get("ds_type") or known.get(suffix, "json"))


@contextlib.contextmanager
def _plain_errors(run: RunFile, key: str, entry: dict[str, Any]) -> Iterator[None]:
    try:
        yield
    except click.ClickException:
        raise
    except Exception as error:  # datasets raises a score of types for a user's mistake
        words = libraries.reason(error.__cause__ or error, 300) if str(error) else "it is empty or malformed"
        raise run.error(
            f"{key}.path",
            f"{entry['path']} ({entry.get('split')}) cannot be read: {words}. "
            "Check path and split; offline, use a local copy.",
        ) from None
