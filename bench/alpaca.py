"""The rows that the benchmarks train on: a file in Alpaca's columns, or the embedded questions and answers."""

import json
from pathlib import Path
from typing import Any

from lora_recipes import ROOT, files

import click

DEFAULT = ROOT.parent / "shared" / "data" / "alpaca_en_demo.json"
EMBEDDED = ROOT / "data" / "african_history"
RECIPE = "phi1.5-alpaca-gpt4"
"""Its prompt is Alpaca's."""


def source(given: Path | None) -> Path:
    """The file asked for; without one LLaMA-Factory's demo rows where they lie, else the embedded data."""
    return given or (DEFAULT if DEFAULT.is_file() else EMBEDDED)


def load(path: Path) -> list[dict[str, str]]:
    """Rows with `instruction`, `input` and `output`, in file order; a row without an answer is left out.

    Raises click.ClickException for a file that holds something else.
    """
    if path == EMBEDDED:
        lines = [
            line for part in ("train", "validation") for line in files.read_text(path / f"{part}.jsonl").splitlines()
        ]
        rows = [json.loads(line) for line in lines]
        return [{"instruction": row["question"], "input": "", "output": row["answer"]} for row in rows]
    try:
        found = json.loads(files.read_text(path))
        rows = [{key: row.get(key) or "" for key in ("instruction", "input", "output")} for row in found]
    except (ValueError, AttributeError, TypeError):
        raise click.ClickException(
            f"{path}: not a JSON list of rows with instruction, input and output; give another --data."
        ) from None
    return [row for row in rows if row["instruction"].strip() and row["output"].strip()]


def fitting(rows: list[dict[str, str]], tokenizer: Any, fmt: Any, sequence_len: int) -> list[dict[str, str]]:
    """The rows of at most `sequence_len` tokens: longer ones some trainers cut and others leave out."""
    from lora_recipes import prompts

    examples = prompts.examples(tokenizer, fmt, rows)
    return [row for row, one in zip(rows, examples, strict=True) if len(one["input_ids"]) <= sequence_len]
