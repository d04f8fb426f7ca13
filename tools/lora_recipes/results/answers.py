"""The lines of an answers file, as tools/eval.py writes them: one answer each."""

import json
from pathlib import Path
from typing import Any

from lora_recipes.support import files


def read(path: Path) -> tuple[list[dict[str, Any]], dict[int, str]]:
    """The whole answers of a file in its order, and the numbers of the lines that are none, with what is wrong there.

    A file that is not there has no answers. Raises click.ClickException for one that cannot be read.
    """
    found: list[dict[str, Any]] = []
    damaged: dict[int, str] = {}
    for number, line in enumerate(files.read_bytes(path).split(b"\n") if path.exists() else (), 1):
        answer, mistake = _parsed(line)
        if not mistake:
            found.append(answer)
        elif line.strip():
            damaged[number] = mistake
    return found, damaged


def _parsed(line: bytes) -> tuple[Any, str]:
    from lora_recipes.results import schema

    try:
        answer = json.loads(line)
    except (ValueError, RecursionError):
        return None, "no whole line of JSON"
    return answer, schema.mistake(schema.Answer, answer)
