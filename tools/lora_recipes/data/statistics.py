"""What a data set holds: rows, empty cells, repeated questions, lengths in characters and tokens."""

import math
import statistics
from collections.abc import Sequence
from typing import Any

from lora_recipes.data import sources, splitting
from lora_recipes.data.reading import Rows
from lora_recipes.results import tables
from lora_recipes.support import libraries

import click

_BATCH = 1000


def load_tokenizer(name: str) -> Any:
    """The tokenizer of a model: a local folder or a name on the Hub."""
    libraries.quiet()
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(name, trust_remote_code=False)
    except Exception as error:  # transformers raises a dozen types for a name that is none
        words = f"--tokenizer {name} cannot be loaded: {libraries.reason(error).rstrip('.')}"
        raise click.ClickException(f"{words}. Give a model's folder, or its name on the Hub.") from None


def measure(
    data: Rows, source: str, question: str, answer: str, tokenizer: Any = None, limit: int | None = None
) -> dict[str, Any]:
    """The figures of one split; lengths in tokens are of the bare columns, without the prompt's fixed words.

    `over` counts the rows whose question and answer are more than `limit` tokens together.
    """
    asked = sources.questions(data, question, source)
    answered = sources.texts(data, answer, source, "choose a column with --answer")
    repeats = splitting.repeated(asked)
    figures: dict[str, Any] = {
        "rows": len(data),
        "blank": sum(not text.strip() for text in [*asked, *answered]),
        "repeated": sum(len(rows) - 1 for rows in repeats.values()),
        "characters": _lengths([len(text) for text in asked], [len(text) for text in answered]),
    }
    if tokenizer:
        counts = _tokens(tokenizer, asked), _tokens(tokenizer, answered)
        figures["tokens"] = _lengths(*counts)
        if limit:
            figures["over"] = sum(one + two > limit for one, two in zip(*counts, strict=True))
    return figures


def _tokens(tokenizer: Any, texts: Sequence[str]) -> list[int]:
    batches = (list(texts[start : start + _BATCH]) for start in range(0, len(texts), _BATCH))
    return [len(ids) for batch in batches for ids in tokenizer(batch, add_special_tokens=False)["input_ids"]]


def _lengths(asked: Sequence[int], answered: Sequence[int]) -> dict[str, dict[str, int]]:
    """Of questions, of answers, and of both together."""
    both = [one + two for one, two in zip(asked, answered, strict=True)]
    return {"question": _spread(asked), "answer": _spread(answered), "both": _spread(both)}


def _spread(values: Sequence[int]) -> dict[str, int]:
    """Lengths that occur: half, and 95 of 100, of the rows are no longer."""
    if not values:
        return {"median": 0, "p95": 0, "longest": 0}
    ranked = sorted(values)
    return {
        "median": statistics.median_low(ranked),
        "p95": ranked[math.ceil(0.95 * len(ranked)) - 1],
        "longest": ranked[-1],
    }


def as_tables(found: dict[str, dict[str, Any]], limit: int | None) -> str:
    """The rows of each split, and below them the lengths."""
    over = [f"over {limit} tokens"] if limit else []
    counts = [["split", "rows", "blank cells", "repeated questions", *over]]
    units = [unit for unit in ("characters", "tokens") if any(unit in figures for figures in found.values())]
    spreads = [["split", "length in", "of", "median", "95 %", "longest"]]
    for split, figures in found.items():
        keys = ["rows", "blank", "repeated", *(["over"] if limit else [])]
        counts.append([split, *(tables.number(figures[key]) for key in keys)])
        for unit in units:
            for text, spread in figures[unit].items():
                spreads.append([split, unit, text, *(tables.number(value) for value in spread.values())])
    return f"{tables.aligned(counts)}\n\n{tables.aligned(spreads)}"
