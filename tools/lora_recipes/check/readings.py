"""Where Axolotl reads a local file otherwise than it is written: it guesses types, and trains what it has guessed."""

import json
from pathlib import Path
from typing import Any

from lora_recipes.check.checked_run import CheckedRun
from lora_recipes.check.parts import COLUMNS, Part


def jobs(checked: CheckedRun, parts: list[Part], folder: Path) -> list[dict[str, Any]]:
    """What axolotl_rows.compared is asked of each local data set, whose rows are put into the folder."""
    found = []
    for part in parts:
        if is_local(checked, part):
            path = folder / f"{part.key}.written"
            path.write_text("".join(json.dumps(row, default=str) + "\n" for row in part.rows), encoding="utf-8")
            found.append({"entry": part.entry, "split": split_of(part), "rows": str(path), "columns": _columns(part)})
    return found


def is_local(checked: CheckedRun, part: Part) -> bool:
    """Whether the rows are files of this machine which Axolotl finds by their names."""
    said = {one.key for one in checked.report.findings if one.check in ("data-files", "reader")}
    return (
        not part.made_up
        and bool(checked.local(part.entry["path"]))
        and not said & {f"{part.key}.{name}" for name in ("path", "data_files", "ds_type")}
    )


def split_of(part: Part) -> str:
    """What Axolotl takes where a data set names no split."""
    return "test" if part.key.startswith("test_datasets") else "train"


def _columns(part: Part) -> list[str]:
    if part.format:
        fmt = part.format
        return [fmt.field_instruction, fmt.field_input, fmt.field_output, fmt.field_system]
    named = [value for name, value in part.entry.items() if name.startswith("field") and isinstance(value, str)]
    return list(dict.fromkeys([*named, *COLUMNS]))


def report(checked: CheckedRun, parts: list[Part], found: dict[str, dict[str, Any]], folder: Path) -> None:
    """The answers, by the path of a data set's rows, as findings."""
    for part in parts:
        said = found.get(str(folder / f"{part.key}.written"))
        if not said:
            continue
        path = part.entry["path"]
        if "failed" in said:
            words = f"{path}: Axolotl cannot read it ({said['failed']})"
        elif "rows" in said:
            words = f"{path}: Axolotl reads {said['rows']:,} rows, where {len(part.rows):,} are named"
        else:
            more = f", and {said['count'] - 1:,} more cells" if said["count"] > 1 else ""
            words = (
                f"{path}, row {said['row']}: {said['column']} is {said['ours']} as written, and {said['theirs']} "
                f"to Axolotl, which guesses types{more}"
            )
        checked.error(
            "texts",
            f"{part.key}.path",
            words,
            "texts that Axolotl trains as they are written",
            "write JSON lines with tools/data.py build; where those hold nothing but dates, Parquet with text columns",
        )
