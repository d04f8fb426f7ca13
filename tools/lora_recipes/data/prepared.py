"""Axolotl's prepared rows: apart from those that stock Axolotl prepared, and whole."""

import json
import shutil
from pathlib import Path

from lora_recipes.support import files

FOLDER = "special-tokens-as-text"
"""Below dataset_prepared_path: Axolotl's own cache does not know that prompts.as_text was used."""

_DEFAULT, _LOCK = "last_run_prepared", "datasets_prep.lock"
"""Of axolotl 0.19, common/const.py and utils/data/lock.py."""


def folder(given: object) -> Path:
    """Where rows are prepared for a run file's dataset_prepared_path."""
    return Path(str(given or _DEFAULT)) / FOLDER


def remove_unfinished(prepared: Path) -> None:
    """Remove rows whose writing was cut off: Axolotl takes any folder that is not empty for whole.

    Waits for a trainer that is preparing rows there. Raises click.ClickException.
    """
    from filelock import FileLock

    if not prepared.is_dir():
        return
    with files.as_click_errors(prepared), FileLock(prepared / _LOCK):
        for rows in prepared.iterdir():
            if rows.is_dir() and not _is_whole(rows):
                shutil.rmtree(rows)


def _is_whole(rows: Path) -> bool:
    """datasets writes dataset_info.json last."""
    try:
        json.loads((rows / "dataset_info.json").read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return False
    return True
