"""Training rows as tokens: masked once at tokenization, counted, padded in batches."""

from dataclasses import dataclass
from typing import Any

from lora_recipes import prompts, rows
from lora_recipes.runfile import RunFile

PAD_TO = 64
"""Batches are padded to a multiple of this, as Axolotl pads them."""


@dataclass(frozen=True)
class TokenRows:
    """Tokenized rows in training order, and what was left out of them."""

    dataset: Any
    """datasets.Dataset of `input_ids` and `labels` (lists of int, equal length a row)."""
    dropped: int
    """Rows over the length limit."""

    @property
    def tokens(self) -> int:
        return sum(len(ids) for ids in self.dataset["input_ids"])

    @property
    def trained_tokens(self) -> int:
        return sum(label != prompts.IGNORED for labels in self.dataset["labels"] for label in labels)


def tokenize(run: RunFile, tokenizer: Any, part: str) -> TokenRows | None:
    """The rows of `train` or `validation` in the order in which Axolotl has them: shuffled by the seed.

    None when the run file names no validation rows.
    Raises click.ClickException when no row is left, or a row is too long and
    `excess_length_strategy: raise` is set.
    """
    import datasets

    config = run.config
    found = rows.load_parts(run, part)
    if not found:
        return None
    on_prompt = bool(config.get("train_on_inputs"))
    examples = [one for part, fmt in found for one in prompts.examples(tokenizer, fmt, part, on_prompt)]
    dataset = datasets.Dataset.from_list(examples)
    if config.get("shuffle_merged_datasets", True):
        dataset = dataset.shuffle(seed=int(config.get("seed") or 42))
    limit = int(config.get("sequence_len") or 512)
    fitting = [number for number, ids in enumerate(dataset["input_ids"]) if len(ids) <= limit]
    dropped = len(dataset) - len(fitting)
    if dropped and config.get("excess_length_strategy") == "raise":
        raise run.error("sequence_len", f"{dropped} of {len(dataset)} rows are over {limit} tokens; raise the limit.")
    if not fitting:
        raise run.error("sequence_len", f"every row is over {limit} tokens; raise the limit.")
    return TokenRows(dataset.select(fitting), dropped)


@dataclass(frozen=True)
class Collator:
    """Pads `input_ids` and `labels` on the right; the mask covers what is not padding."""

    pad_token_id: int

    def __call__(self, examples: list[dict[str, list[int]]]) -> dict[str, Any]:
        """Batch of int64 tensors [rows, longest row rounded up to PAD_TO]."""
        import torch

        longest = max(len(example["input_ids"]) for example in examples)
        width = -(-longest // PAD_TO) * PAD_TO

        def padded(name: str, filler: int) -> torch.Tensor:
            return torch.tensor([example[name] + [filler] * (width - len(example[name])) for example in examples])

        mask = [[1] * len(example["input_ids"]) + [0] * (width - len(example["input_ids"])) for example in examples]
        return {
            "input_ids": padded("input_ids", self.pad_token_id),
            "labels": padded("labels", prompts.IGNORED),
            "attention_mask": torch.tensor(mask),
        }
