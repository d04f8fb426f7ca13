"""Which files on this machine a data set is, split by split, and of what kind; found as Axolotl finds them."""

import glob
import os
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lora_recipes.data import builders, reading
from lora_recipes.data.reading import Rows

import click

FORMATS = {".json": "json", ".jsonl": "json", ".csv": "csv", ".parquet": "parquet"}
"""What a SOURCE of tools/data.py may be."""
_OTHER_FORMATS = {".arrow": "arrow", ".txt": "text"}
"""What Axolotl takes as well; a file with any other ending is JSON to it."""


@dataclass(frozen=True)
class LocalFiles:
    """The files of a data set."""

    kind: str
    """A name of builders.KNOWN."""
    files: dict[str, list[str]]
    """Split -> files, in their order."""
    options: dict[str, Any] = field(default_factory=dict)
    """For pandas, of a folder whose README.md has them."""

    def rows(self, split: str) -> Rows:
        """The rows of a split, as the files have them."""
        found = [row for file in self.files[split] for row in reading.of_file(self.kind, Path(file), self.options)]
        return reading.joined(found, self.files[split][0])

    @property
    def compressed(self) -> bool:
        from datasets.utils.extract import Extractor

        return any(Extractor.infer_extractor_format(file) for files in self.files.values() for file in files)

    @property
    def by_library(self) -> dict[str, Any]:
        """What datasets.load_dataset is given to read these very files."""
        return {
            "path": self.kind,
            "data_files": {split: [glob.escape(file) for file in files] for split, files in self.files.items()},
        }


def find(path: str, name: str | None, data_files: Any, ds_type: str | None) -> LocalFiles | None:
    """The files of a file, of a folder, or of `data_files` beside a folder or a kind; None for what is not here.

    Raises click.ClickException for a folder of other kinds, and what the datasets library raises for an empty one.
    """
    kind = ds_type or {**FORMATS, **_OTHER_FORMATS}.get(Path(path).suffix, "json")
    if os.path.isfile(path):
        return LocalFiles(kind, {"train": [path]})
    named = [data_files] if isinstance(data_files, str) else data_files
    if isinstance(named, list) and (os.path.isdir(path) or path in builders.KNOWN):
        files = [file for one in named for file in _named(str(one))]
        kind = kind if os.path.isdir(path) else path
        return None if any("://" in file for file in files) else LocalFiles(kind, {"train": files})
    return _of_folder(path, name) if os.path.isdir(path) else None


def _named(value: str) -> list[str]:
    """A file of this very name, or those that a pattern stands for."""
    from datasets.data_files import resolve_pattern

    return [value] if os.path.exists(value) else list(resolve_pattern(value, ""))


def _of_folder(path: str, name: str | None) -> LocalFiles:
    """Asked of the datasets library, which takes the splits from the files' names or from README.md."""
    import datasets

    if found := builders.pattern_in(path):
        raise click.ClickException(
            f"{path}: {found} in its path is a pattern to the datasets library; rename the folder."
        )
    with tempfile.TemporaryDirectory() as cache:  # nothing is kept there
        builder = datasets.load_dataset_builder(path, name=name, cache_dir=cache)
    config, kind = builder.config, builders.kind_of(builder)
    files = {str(split): [str(file) for file in files] for split, files in (config.data_files or {}).items()}
    return LocalFiles(kind, files, config.pd_read_csv_kwargs if kind == "csv" else {})
