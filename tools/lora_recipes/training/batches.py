"""Training rows as tokens with labels: tokenized, counted, and padded in batches."""

import copy
from dataclasses import dataclass
from typing import Any

from lora_recipes.config.runfile import RunFile
from lora_recipes.data import prompts, rows

from transformers import DataCollatorForSeq2Seq

PAD_TO = 64
"""Batches are padded to a multiple of this, as Axolotl pads them."""


_AT_ONCE = 2000
"""Rows tokenized, or looked at, at a time."""


@dataclass(frozen=True)
class TokenRows:
    """Tokenized rows in training order, and what was left out of them."""

    dataset: Any
    """datasets.Dataset of `input_ids` and `labels` (lists of int, equal length a row)."""
    dropped: int
    """Rows over the length limit."""
    tokens: int
    trained_tokens: int


def tokenize(run: RunFile, tokenizer: Any, part: str) -> TokenRows | None:
    """The rows of `train` or `validation`, shuffled by the seed as Axolotl does; None where the run file names none.

    Raises click.ClickException when no row is left, or a row is too long under `excess_length_strategy: raise`.
    """
    config = run.config
    found = rows.load_parts(run, part)
    if not found:
        return None
    dataset = _tokenized(tokenizer, found, run.trains_on_prompt)
    if config.get("shuffle_merged_datasets", True):
        dataset = dataset.shuffle(seed=run.seed)
    limit = run.sequence_len
    lengths, trained = counts(dataset)
    fitting = [number for number, length in enumerate(lengths) if length <= limit]
    dropped = len(dataset) - len(fitting)
    if dropped and config.get("excess_length_strategy") == "raise":
        raise run.error("sequence_len", f"{dropped} of {len(dataset)} rows are over {limit} tokens; raise the limit.")
    if not fitting:
        raise run.error("sequence_len", f"every row is over {limit} tokens; raise the limit.")
    tokens, learned = (sum(each[number] for number in fitting) for each in (lengths, trained))
    return TokenRows(dataset.select(fitting), dropped, tokens, learned)


def _tokenized(tokenizer: Any, found: list[tuple[list[dict[str, Any]], Any]], on_prompt: bool) -> Any:
    import datasets

    pieces = [
        datasets.Dataset.from_list(prompts.examples(tokenizer, fmt, part[start : start + _AT_ONCE], on_prompt))
        for part, fmt in found
        for start in range(0, len(part), _AT_ONCE)
    ]
    return datasets.concatenate_datasets(pieces)


def counts(dataset: Any) -> tuple[list[int], list[int]]:
    """The number of tokens of each row, and of those that carry loss."""
    lengths: list[int] = []
    trained: list[int] = []
    for batch in dataset.with_format("numpy").iter(_AT_ONCE):
        lengths += [len(ids) for ids in batch["input_ids"]]
        trained += [int((labels != prompts.IGNORED).sum()) for labels in batch["labels"]]
    return lengths, trained


def targets(labels: Any) -> dict[str, Any]:
    """Where the loss of `labels` [rows, length] comes from; on the CPU, as each would make a GPU wait.

    `columns`: the positions whose next token carries loss in any row. `kept`: of the logits [rows, columns] laid end
    to end, those that carry loss. `targets`: the tokens that these are to predict. All int64.
    """
    following = labels[:, 1:]
    columns = (following != prompts.IGNORED).any(dim=0).nonzero().squeeze(1)
    chosen = following[:, columns].flatten()
    kept = (chosen != prompts.IGNORED).nonzero().squeeze(1)
    return {"columns": columns, "kept": kept, "targets": chosen[kept]}


class Collator(DataCollatorForSeq2Seq):
    """Pads `input_ids` and `labels` on the right, to a multiple of PAD_TO; the mask covers what is not padding."""

    def __init__(self, tokenizer: Any, **_: Any) -> None:
        """Takes what Axolotl gives its collators, too."""
        tokenizer = copy.copy(tokenizer)
        tokenizer.padding_side = "right"
        super().__init__(tokenizer, pad_to_multiple_of=PAD_TO)

    def __call__(self, features: list[dict[str, list[int]]], return_tensors: str | None = None) -> dict[str, Any]:
        """Batch of int64 tensors [rows, longest row rounded up to PAD_TO], and `targets` of the labels."""
        batch = super().__call__(features, return_tensors)
        return {**batch, **targets(batch["labels"])}
