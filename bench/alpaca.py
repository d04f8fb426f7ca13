"""The rows that the benchmarks train on: a file in Alpaca's columns, or rows made here, as long as real ones."""

import json
import random
from pathlib import Path
from typing import Any

from lora_recipes.support import files

import click

RECIPE = "phi1.5-alpaca-gpt4"
"""Its prompt is Alpaca's."""

ROWS, WITH_INPUT = 999, 412
INSTRUCTION = (4, 7, 7, 8, 9, 9, 9, 10, 10, 11, 11, 12, 12, 13, 14, 14, 15, 16, 18, 21, 87)
INPUT = (1, 2, 3, 4, 5, 6, 7, 7, 8, 9, 10, 11, 12, 14, 15, 16, 20, 24, 33, 43, 150)
OUTPUT_WITH_INPUT = (1, 6, 8, 10, 12, 14, 17, 21, 26, 31, 38, 50, 60, 71, 90, 123, 165, 217, 275, 365, 549)
OUTPUT = (3, 10, 17, 26, 38, 66, 89, 112, 128, 150, 176, 197, 224, 256, 276, 304, 325, 355, 379, 427, 594)
"""Tokens by SmolLM2's tokenizer, from the shortest to the longest in steps of 5 % of the rows, measured on
data/alpaca_en_demo.json of https://github.com/hiyouga/LLaMA-Factory (999 rows in the columns of alpaca-gpt4, 412 of
them with an input)."""

ASKED = ("Describe how", "Explain why", "Write about the day when", "Tell me whether", "Discuss how", "Imagine that")
WHO = ("the teacher", "a young farmer", "the old king", "my sister", "a doctor", "the captain", "our team", "a student")
DOES = (
    "carries",
    "finds",
    "builds",
    "sells",
    "paints",
    "remembers",
    "cleans",
    "studies",
    "protects",
    "opens",
    "counts",
)
WHAT = (
    "a small boat",
    "the red door",
    "fresh bread",
    "a long letter",
    "the stone bridge",
    "seven books",
    "a new clock",
)
WHERE = (
    "near the river",
    "in the city",
    "after the rain",
    "before winter",
    "without any help",
    "on the island",
    "at home",
)


def load(path: Path | None) -> list[dict[str, str]]:
    """Rows with `instruction`, `input` and `output` of a file, in its order; without a file, made ones.

    A row without an answer is left out. Raises click.ClickException for a file that holds something else.
    """
    if path is None:
        return made()
    try:
        found = json.loads(files.read_text(path))
        rows = [{key: row.get(key) or "" for key in ("instruction", "input", "output")} for row in found]
    except (ValueError, AttributeError, TypeError):
        raise click.ClickException(
            f"{path}: not a JSON list of rows with instruction, input and output; give another --data."
        ) from None
    return [row for row in rows if row["instruction"].strip() and row["output"].strip()]


def name(path: Path | None) -> str:
    """What a result says of the rows."""
    return path.name if path else "made rows (bench/alpaca.py)"


def made() -> list[dict[str, str]]:
    """The same ROWS rows each time, as long in tokens as the real ones and without any sense."""
    draw = random.Random(0)
    return [_row(draw) for _ in range(ROWS)]


def _row(draw: random.Random) -> dict[str, str]:
    asked = [*_one_of(ASKED, draw).split(), *_sentence(draw)]
    with_input = draw.random() < WITH_INPUT / ROWS
    return {
        "instruction": _text(_length(INSTRUCTION, draw), draw, asked),
        "input": _text(_length(INPUT, draw), draw) if with_input else "",
        "output": _text(_length(OUTPUT_WITH_INPUT if with_input else OUTPUT, draw), draw),
    }


def _length(steps: tuple[int, ...], draw: random.Random) -> int:
    """Between two of the equally frequent steps, evenly."""
    at, share = divmod(draw.random() * (len(steps) - 1), 1)
    low, high = steps[int(at) : int(at) + 2]
    return round(low + share * (high - low))


def _text(tokens: int, draw: random.Random, begun: list[str] | None = None) -> str:
    """Sentences, cut after so many tokens: each word and each full stop is one."""
    words = list(begun or _sentence(draw))
    while len(words) < tokens:
        words += [".", *_sentence(draw)]
    told = [word.capitalize() if at == 0 or words[at - 1] == "." else word for at, word in enumerate(words)]
    return " ".join(told[:tokens]).replace(" .", ".")


def _sentence(draw: random.Random) -> list[str]:
    return " ".join(_one_of(words, draw) for words in (WHO, DOES, WHAT, WHERE)).split()


def _one_of(words: tuple[str, ...], draw: random.Random) -> str:
    return words[int(draw.random() * len(words))]  # draw.choice may differ between versions of Python


def fitting(rows: list[dict[str, str]], tokenizer: Any, fmt: Any, sequence_len: int) -> list[dict[str, str]]:
    """The rows of at most `sequence_len` tokens: longer ones some trainers cut and others leave out."""
    from lora_recipes.data import prompts

    examples = prompts.examples(tokenizer, fmt, rows)
    return [row for row, one in zip(rows, examples, strict=True) if len(one["input_ids"]) <= sequence_len]
