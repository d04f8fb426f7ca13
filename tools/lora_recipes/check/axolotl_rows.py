"""The rows of a data set as Axolotl reads them, beside the rows as written; it runs in the worker process."""

import json
from typing import Any

from lora_recipes.check.axolotl_load import words


def loaded(entry: dict[str, Any], split: str) -> Any:
    """A data set read by Axolotl's own loader; `split`, train or test, is what it takes where the entry names none.

    Raises what Axolotl raises.
    """
    from axolotl.utils.data.shared import load_dataset_with_config
    from axolotl.utils.dict import DictDefault
    from datasets import DatasetDict

    found = load_dataset_with_config(DictDefault(entry), False)
    if not isinstance(found, DatasetDict):
        return found
    named = entry.get("split") if entry.get("split") in found else split  # as utils/data/sft.py chooses
    if named not in found:
        raise ValueError(f"no {named} split, only {', '.join(found)}")
    return found[named]


def compared(entry: dict[str, Any], split: str, rows: str, columns: list[str]) -> dict[str, Any]:
    """What differs from the rows of a JSONL file in the texts of some columns; empty where nothing does.

    `failed`: why Axolotl cannot read it. `rows`: how many it reads, where that differs. Otherwise `column`, the first
    `row` (from 1), the text as written, `ours`, what Axolotl has instead, `theirs`, and how many cells, `count`.
    """
    try:
        data = loaded(entry, split)
        there = {name: list(data[name]) for name in columns if name in data.column_names}
    except Exception as error:  # of every type: it is whatever reader the data set takes
        return {"failed": words(error)}
    with open(rows, encoding="utf-8") as lines:
        written = [json.loads(line) for line in lines]
    if len(data) != len(written):
        return {"rows": len(data)}
    nothing = [None] * len(written)
    cells = [
        (row, name, one.get(name), two)
        for name in columns
        for row, (one, two) in enumerate(zip(written, there.get(name, nothing), strict=True), 1)
        if not _same(one.get(name), two)
    ]
    if not cells:
        return {}
    row, name, ours, theirs = min(cells, key=lambda cell: cell[0])
    return {"row": row, "column": name, "ours": repr(ours)[:80], "theirs": repr(theirs)[:80], "count": len(cells)}


def _same(ours: Any, theirs: Any) -> bool:
    """Whether every text of a cell is there; what is no text does not count, and nothing is as good as an empty one."""
    if isinstance(ours, str):
        return theirs == ours or (not ours and theirs is None)
    if isinstance(ours, dict):
        return isinstance(theirs, dict) and all(_same(value, theirs.get(name)) for name, value in ours.items())
    if isinstance(ours, list):
        return isinstance(theirs, list) and len(ours) == len(theirs) and all(map(_same, ours, theirs))
    return True
