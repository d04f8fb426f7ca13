"""Axolotl's prepared rows: those whose writing was cut off are removed before Axolotl reads them."""

import json
import re
import shutil
from pathlib import Path

from lora_recipes.support import files

_LOCK = "datasets_prep.lock"
"""The lock of axolotl 0.19, utils/data/lock.py."""
_NAME = re.compile("[0-9a-f]{32}")
"""A folder of prepared rows is named by the MD5 hash of its settings; others in the same place are not Axolotl's."""


def remove_unfinished(prepared: Path) -> None:
    """Remove rows whose writing was cut off: Axolotl takes any folder that is not empty for whole.

    Waits for a trainer that is preparing rows there. Raises click.ClickException.
    """
    from filelock import FileLock

    if not prepared.is_dir():
        return
    with files.as_click_errors(prepared), FileLock(prepared / _LOCK):
        for rows in prepared.iterdir():
            if rows.is_dir() and _NAME.fullmatch(rows.name) and not _is_whole(rows):
                shutil.rmtree(rows)


def _is_whole(rows: Path) -> bool:
    """datasets writes dataset_info.json last."""
    try:
        json.loads((rows / "dataset_info.json").read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return False
    return True
