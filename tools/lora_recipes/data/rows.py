"""The rows that a run file names: questions and answers for training, validation and test."""

from typing import Any

from lora_recipes.config.runfile import RunFile
from lora_recipes.data import sources
from lora_recipes.data.prompts import PromptFormat, prompt_format
from lora_recipes.data.reading import Rows

import click

UNDERSTOOD = {"path", "name", "split", "type", "data_files", "ds_type", "revision"}


def load_rows(run: RunFile, part: str) -> list[dict[str, Any]]:
    """The rows of `train`, `validation` (the run file's test_datasets) or `test`, in file order.

    `test`, and any other name, is a split of the first training set, as is `train[90%:]`.
    Raises click.ClickException for data that are missing, empty, malformed or lack a column.
    """
    return [row for rows, _ in load_parts(run, part) for row in rows]


def load_parts(run: RunFile, part: str) -> list[tuple[list[dict[str, Any]], PromptFormat]]:
    """As load_rows, one list for each data set with its prompt format."""
    key = "test_datasets" if part == "validation" else "datasets"
    entries = run.config.get(key) or []
    if part not in ("train", "validation"):
        entries = [{**entries[0], "split": part}]
    return [load_entry(run, key, index, entry) for index, entry in enumerate(entries)]


def load_entry(run: RunFile, key: str, index: int, entry: dict[str, Any]) -> tuple[list[dict[str, Any]], PromptFormat]:
    """The rows of one data set of a run file, and the format of its prompt; raises as load_rows does."""
    for name in entry:
        if name not in UNDERSTOOD:
            raise run.error(
                f"{key}.{index}.{name}", f"only Axolotl knows this; here {', '.join(sorted(UNDERSTOOD))} work."
            )
    if not isinstance(entry.get("path"), str) or not entry["path"].strip():
        raise run.error(f"{key}.{index}.path", "missing; give a file, a folder or a name on the Hub.")
    fmt = prompt_format(run, index, key)
    data = read(run, key, index, entry)
    missing = [column for column in fmt.columns if column not in data.columns]
    if missing:
        raise run.error(
            f"{key}.{index}.type",
            f"{entry['path']} ({entry.get('split')}) has no column {missing[0]!r}, "
            f"only {', '.join(data.columns)}; set field_instruction and field_output to columns that it has.",
        )
    if not len(data):
        raise run.error(f"{key}.{index}.path", f"{entry['path']} ({entry.get('split')}) has no rows; nothing to do.")
    for number, row in enumerate(data.rows):
        for column in fmt.columns:
            if not isinstance(row[column], str) or not row[column].strip():
                raise run.error(
                    f"{key}.{index}.path",
                    f"{entry['path']} ({entry.get('split')}), row {number + 1}: {column!r} is {row[column]!r}; "
                    "each row needs a text there: correct or delete the row.",
                )
    return data.rows, fmt


def read(run: RunFile, key: str, index: int, entry: dict[str, Any]) -> Rows:
    """The rows of one data set of a run file, whatever its type; raises click.ClickException.

    Without a `split` they are those of `train`, of test_datasets those of `test` where there are any, as for Axolotl.
    """
    path, files = entry["path"], entry.get("data_files")
    if run.path(path).exists():
        path = str(run.path(path))
    if isinstance(files, (str, list)):
        files = [one if "://" in one else str(run.path(one)) for one in ([files] if isinstance(files, str) else files)]
    named = {name: entry.get(name) for name in ("name", "ds_type", "revision")}
    split = entry.get("split") or ("train" if key == "datasets" else None)
    try:
        parts = sources.load(path, split, data_files=files, **named)
    except click.ClickException as error:
        raise run.error(f"{key}.{index}.path", error.message) from None
    return parts[split or ("test" if "test" in parts else next(iter(parts)))]
