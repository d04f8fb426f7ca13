"""Evaluations as the tests make them: few questions, and what came of them."""

import json
from pathlib import Path
from typing import Any

import eval as eval_tool
from click.testing import CliRunner, Result

RECIPE = "smollm2-african-history"
BF16 = "bf16=true"
"""As the recipe has it: what shares a batch with a question shows in its answer."""

FEW = ("--limit", "6", "--max-new-tokens", "8", "--batch-size", "2")


def evaluate(*args: object) -> Result:
    return CliRunner().invoke(eval_tool.main, [str(arg) for arg in args])


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def section(folder: Path, kind: str = "evaluation") -> dict[str, Any]:
    return json.loads((folder / "result.json").read_text())[kind]


def assert_one_sentence(done: Result, *words: str) -> None:
    assert done.exit_code in (1, 2), done.output
    assert isinstance(done.exception, SystemExit), done.exception
    message = done.stderr.rpartition("Error: ")[2]
    assert message.count("\n") == 1
    for word in words:
        assert word in message
