"""Training rows as tokens: masked once at tokenization, counted, padded in batches."""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lora_recipes.config.runfile import RunFile
from lora_recipes.data import prompts, rows
from lora_recipes.support import files

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
    """The rows of `train` or `validation` in the order in which Axolotl has them: shuffled by the seed.

    They are tokenized once and kept below dataset_prepared_path, under a hash of all that they follow from.
    None when the run file names no validation rows.
    Raises click.ClickException when no row is left, or a row is too long and
    `excess_length_strategy: raise` is set.
    """
    config = run.config
    found = rows.load_parts(run, part)
    if not found:
        return None
    dataset = _kept(run, tokenizer, found)
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


def _kept(run: RunFile, tokenizer: Any, found: list[tuple[list[dict[str, Any]], Any]]) -> Any:
    """The rows as tokens, from an earlier run where nothing has changed."""
    import datasets

    on_prompt = run.trains_on_prompt
    if not run.config.get("dataset_prepared_path"):
        return _tokenized(tokenizer, found, on_prompt)
    path = run.path(run.config["dataset_prepared_path"]) / f"plain-{_hash(tokenizer, found, on_prompt)}"
    with files.locked(path):
        if not path.is_dir():
            with files.whole_folder(path) as folder:
                _tokenized(tokenizer, found, on_prompt).save_to_disk(folder)
    return datasets.load_from_disk(path)


def _hash(tokenizer: Any, found: list[tuple[list[dict[str, Any]], Any]], on_prompt: bool) -> str:
    digest = hashlib.sha256(f"{tokenizer.eos_token_id} {tokenizer.bos_token_id} {on_prompt}".encode())
    backend = getattr(tokenizer, "backend_tokenizer", None)
    digest.update(Path(prompts.__file__).read_bytes())
    digest.update((backend.to_str() if backend else str(tokenizer.get_vocab())).encode())
    for part, fmt in found:
        digest.update(repr(fmt).encode())
        for row in part:
            digest.update(repr((fmt.prompt(row), row[fmt.field_output])).encode())
    return digest.hexdigest()[:16]


def _tokenized(tokenizer: Any, found: list[tuple[list[dict[str, Any]], Any]], on_prompt: bool) -> Any:
    import datasets

    pieces = [
        datasets.Dataset.from_list(prompts.examples(tokenizer, fmt, part[start : start + _AT_ONCE], on_prompt))
        for part, fmt in found
        for start in range(0, len(part), _AT_ONCE)
    ]
    return datasets.concatenate_datasets(pieces)


def counts(dataset: Any) -> tuple[list[int], list[int]]:
    """Of each row the tokens, and those that carry loss."""
    lengths: list[int] = []
    trained: list[int] = []
    for batch in dataset.with_format("numpy").iter(_AT_ONCE):
        lengths += [len(ids) for ids in batch["input_ids"]]
        trained += [int((labels != prompts.IGNORED).sum()) for labels in batch["labels"]]
    return lengths, trained


def targets(labels: Any) -> dict[str, Any]:
    """What the loss is made of, of `labels` [rows, length], found on the CPU: found on a GPU, each would be waited for.

    `columns`: the positions whose next token carries loss in any row. Of the logits [rows, columns] laid end to end,
    `kept` are those that carry loss, and `targets` the tokens that they are to predict. All int64.
    """
    following = labels[:, 1:]
    columns = (following != prompts.IGNORED).any(dim=0).nonzero().squeeze(1)
    chosen = following[:, columns].flatten()
    kept = (chosen != prompts.IGNORED).nonzero().squeeze(1)
    return {"columns": columns, "kept": kept, "targets": chosen[kept]}


@dataclass(frozen=True)
class Collator:
    """Pads `input_ids` and `labels` on the right; the mask covers what is not padding."""

    pad_token_id: int

    def __call__(self, examples: list[dict[str, list[int]]]) -> dict[str, Any]:
        """Batch of int64 tensors [rows, longest row rounded up to PAD_TO], and `targets` of the labels."""
        import torch

        longest = max(len(example["input_ids"]) for example in examples)
        width = -(-longest // PAD_TO) * PAD_TO

        def padded(name: str, filler: int) -> torch.Tensor:
            return torch.tensor([example[name] + [filler] * (width - len(example[name])) for example in examples])

        mask = [[1] * len(example["input_ids"]) + [0] * (width - len(example["input_ids"])) for example in examples]
        labels = padded("labels", prompts.IGNORED)
        return {
            "input_ids": padded("input_ids", self.pad_token_id),
            "labels": labels,
            "attention_mask": torch.tensor(mask),
            **targets(labels),
        }
