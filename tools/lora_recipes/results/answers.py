"""The lines of an answers file, as tools/eval.py writes them: one answer each."""

import json
from pathlib import Path
from typing import Any

COLUMNS = {"row", "question", "reference", "answer", "finished", "new_tokens", "reference_nats", "settings"}


def read(path: Path) -> tuple[list[dict[str, Any]], list[int]]:
    """The whole answers of a file in its order, and the numbers of the lines that are none, such as half a line.

    A file that is not there has no answers. Raises OSError.
    """
    found, damaged = [], []
    for number, line in enumerate(path.read_bytes().split(b"\n") if path.exists() else (), 1):
        answer = _parsed(line)
        if answer is not None:
            found.append(answer)
        elif line.strip():
            damaged.append(number)
    return found, damaged


def _parsed(line: bytes) -> dict[str, Any] | None:
    try:
        answer = json.loads(line)
    except ValueError:
        return None
    whole = isinstance(answer, dict) and set(answer) >= COLUMNS and isinstance(answer["row"], int)
    return answer if whole else None
