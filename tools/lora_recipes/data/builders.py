"""Which readers of the datasets library may open a run's data: those of text and tables, none that runs what it reads.

The library picks a reader ("builder") by name. Its `pandas` unpickles, which runs any code that a file holds.
"""

import importlib.util
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lora_recipes.config.runfile import RunFile

import click

KNOWN = ("json", "csv", "parquet", "arrow", "text")
KEYS = ("datasets", "test_datasets", "pretraining_dataset")
"""The keys under which a run file names data that Axolotl reads."""
_PATTERN = re.compile(r"[*?\[]|::")
"""What makes a pattern, or a chain of file systems, of a path that is given to the datasets library."""


def entries(config: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each data set of a run file with its key, as `datasets.0`; a bare name, as pretraining_dataset takes it, too."""
    for key in KEYS:
        value = config.get(key)
        for index, entry in enumerate(value if isinstance(value, list) else []):
            if isinstance(entry, (dict, str)):
                yield f"{key}.{index}", entry if isinstance(entry, dict) else {"path": entry}
        if isinstance(value, (dict, str)):
            yield key, value if isinstance(value, dict) else {"path": value}


def refused(path: Any, ds_type: Any = None) -> tuple[str, str] | None:
    """Which of `path` and `ds_type` names a reader that is not known, and its name; None where neither does."""
    if ds_type is not None and ds_type not in KNOWN:
        return "ds_type", str(ds_type)
    name = str(path).removeprefix("hf://datasets/")  # which the library takes off before it looks for a reader
    return ("path", name) if name not in KNOWN and name in _packaged() else None


def _packaged() -> set[str]:
    """All readers that the library brings along; without importing it."""
    found = importlib.util.find_spec("datasets")
    folders = found.submodule_search_locations if found else None
    return {path.name for folder in folders or () for path in Path(folder, "packaged_modules").iterdir()}


def require_known(path: Any, ds_type: Any = None) -> None:
    """Raises click.ClickException for a reader that is not known."""
    if found := refused(path, ds_type):
        raise click.ClickException(sentence(*found))


def kind_of(builder: Any) -> str:
    """Which reader a datasets.DatasetBuilder is: a name of KNOWN, or `cache` for rows of the Hub read earlier.

    Raises click.ClickException for any other.
    """
    kind = type(builder).__module__.rpartition(".")[2]
    if kind not in (*KNOWN, "cache"):
        raise click.ClickException(f"its files are for the reader {kind!r}; here {', '.join(KNOWN)} work.")
    return kind


def sentence(key: str, name: str) -> str:
    """Why a reader is refused."""
    return f"{key} names the reader {name!r}, and one may run code that the data hold; here {', '.join(KNOWN)} work."


def require_readable(run: RunFile) -> None:
    """Refuse, before anything is opened, data that Axolotl would read otherwise than meant.

    Raises click.ClickException.
    """
    for key, entry in entries(run.config):
        if found := refused(entry.get("path"), entry.get("ds_type")):
            raise run.error(_place(key, found[0], run.config), sentence(*found))
        for name, words in taken_for_patterns(entry, run.anchor):
            raise run.error(_place(key, name, run.config), f"{words}; rename the file or its folder.")


def _place(key: str, name: str, config: dict[str, Any]) -> str:
    return f"{key}.{name}" if not isinstance(config.get(key), str) else key


def taken_for_patterns(entry: dict[str, Any], anchor: Path) -> Iterator[tuple[str, str]]:
    """The keys of a data set that name a file which Axolotl takes for a pattern, each with a sentence's beginning."""
    for name in ("path", "data_files"):
        value = entry.get(name)
        for one in value if isinstance(value, list) else [value]:
            path = anchor / one if isinstance(one, str) and one else None
            if path and os.path.exists(path) and (found := pattern_in(path)):
                yield name, f"{one}: Axolotl takes {found} in a path for a pattern and reads other files"


def pattern_in(path: str | Path) -> str:
    """What of a path, made absolute, the datasets library takes for a pattern; '' where it is literal."""
    found = _PATTERN.search(os.path.abspath(path))
    return found.group() if found else ""
