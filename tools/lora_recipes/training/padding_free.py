"""Micro batches without padding: rows laid end to end, each attending only to itself, with positions from 0.

All layers but attention work token by token, so one long sequence needs no padding; attention takes each row by itself
(row_attention.py). A beginning that rows of a micro batch share, such as a system prompt, is laid once before them:
its states are the same in every row, and its gradient is the sum of theirs. Loss and gradients are those of padded
rows.
"""

import itertools
from dataclasses import dataclass
from typing import Any

from lora_recipes.config.runfile import RunFile
from lora_recipes.data import prompts
from lora_recipes.support import libraries
from lora_recipes.training import batches, row_attention

import click
import torch

_WORTH = 16
"""Least tokens that a shared beginning has to save: to attention, each beginning is one more row."""

_ROUNDING, _IN_HALVES = 1e-4, 5e-2
"""Largest relative difference (Euclidean norm) of logits that differ in the order of sums alone: float32, 16 bit."""

_TIMES = 4
"""In 16 bit, times the difference that the model's own attention makes between batches."""


@dataclass(frozen=True)
class Collator:
    """Lays the rows of a micro batch end to end, and beginnings that they share once."""

    share: bool = False
    """Lay shared beginnings once: not under dropout, which differs in each row, and only on a CPU (row_attention)."""

    def __call__(self, examples: list[dict[str, list[int]]]) -> dict[str, Any]:
        """`row_parts` [rows, 3], `input_ids`, `labels` and `position_ids` [1, tokens], int64, and batches.targets.

        `row_ends`, int32, are 0 and the place after each row, None where rows share tokens. A row's parts are its own
        tokens, the tokens of its beginning that were laid before, and 1 where that beginning stands right before it,
        else 0. The label of the first token that is laid is IGNORED: nothing comes before it.
        """
        heads = [_untrained(example) if self.share else [] for example in examples]
        parts: list[tuple[int, int, int]] = []
        ids: list[int] = []
        labels: list[int] = []
        positions: list[int] = []
        for members, before in shared_beginnings(heads):
            for number, member in enumerate(members):
                row = examples[member]
                first = number == 0 and before > 0
                parts.append((len(row["input_ids"]) - before, before, int(first)))
                for start, end in ((0, before), (before, len(row["input_ids"]))):
                    if start == end or (start == 0 < before and not first):
                        continue
                    ids += row["input_ids"][start:end]
                    labels += [prompts.IGNORED, *row["labels"][start + 1 : end]]
                    positions += range(start, end)
        shared = any(before for _, before, _ in parts)
        ends = None if shared else list(itertools.accumulate((own for own, _, _ in parts), initial=0))
        return {
            "row_parts": torch.tensor(parts),  # first: transformers counts the rows of a batch by its first tensor
            "row_ends": ends and torch.tensor(ends, dtype=torch.int32),
            "longest_row": max(own + before for own, before, _ in parts),
            "input_ids": torch.tensor([ids]),
            "labels": (laid := torch.tensor([labels])),
            "position_ids": torch.tensor([positions]),
            **batches.targets(laid),
        }


def _untrained(example: dict[str, list[int]]) -> list[int]:
    """A row's tokens before its last untrained one: what it can share and still predict all its labels."""
    labels = example["labels"]
    trained = next((at for at in range(1, len(labels)) if labels[at] != prompts.IGNORED), len(labels))
    return example["input_ids"][: trained - 1]


def shared_beginnings(heads: list[list[int]]) -> list[tuple[list[int], int]]:
    """Groups of `heads`, by their indices, with the number of tokens that each group shares.

    Of all groupings of neighbours in sorted order the one that saves most tokens, by dynamic programming.
    """
    order = sorted(range(len(heads)), key=heads.__getitem__)
    common = [_common(heads[one], heads[other]) for one, other in itertools.pairwise(order)]
    saved, last = [0], [(0, 0)]
    for end in range(1, len(order) + 1):
        best, group = saved[end - 1], (end - 1, 0)
        shared = len(heads[order[end - 1]])
        for start in range(end - 2, -1, -1):
            shared = min(shared, common[start])
            gain = (end - start - 1) * shared
            if gain >= _WORTH and saved[start] + gain > best:
                best, group = saved[start] + gain, (start, shared)
        saved.append(best)
        last.append(group)
    groups, end = [], len(order)
    while end:
        start, shared = last[end]
        groups.append((order[start:end], shared))
        end = start
    return groups[::-1]


def _common(one: list[int], other: list[int]) -> int:
    """The number of tokens with which both begin."""
    return next((at for at, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))


def use(run: RunFile, model: Any) -> Collator | None:
    """Switch a PEFT model to rows laid end to end; gives the collator, or None where rows have to be padded.

    They have to where the run file names an attention other than sdpa, under DeepSpeed ZeRO-3 (whose weights are not
    loaded yet), and where a trial does not give a row the logits that it has alone.
    """
    if run.attention not in (None, "sdpa") or run.zero_stage == 3:
        return None
    base = model.get_base_model()
    before = base.config._attn_implementation
    try:
        if is_exact(model):
            return Collator(share=not run.config.get("lora_dropout") and base.device.type == "cpu")
        reason = "another row changes them, or they differ from those alone"
    except (RuntimeError, ValueError, TypeError, NotImplementedError) as error:
        reason = libraries.reason(error)
    base.set_attn_implementation(before)
    click.echo(f"rows are padded: laid end to end they do not get this model's exact logits: {reason}", err=True)
    return None


def is_exact(model: Any) -> bool:
    """Try rows laid end to end; the model keeps attention row by row.

    A row's logits must not change by a bit when the row before it changes. They must equal, up to rounding, those of
    the row alone under the model's own attention; on a CPU also when it shares its beginning with the row before it.
    """
    base = model.get_base_model()
    generator = torch.Generator().manual_seed(0)
    words = base.config.get_text_config().vocab_size
    before, other, row = (torch.randint(words, (n,), generator=generator).tolist() for n in (17, 17, 30))
    end = [(word + 1) % words for word in row[-9:]]
    training = model.training
    with torch.no_grad():
        model.eval()
        alone = base(input_ids=torch.tensor([row], device=base.device), use_cache=False).logits[0, -9:]
        limit = _limit(base, row, before, alone)
        row_attention.register()
        base.set_attn_implementation(row_attention.NAME)
        _logits(model.train(), [row], Collator())  # raises where the model's own attention has dropout
        model.eval()
        after, unmoved = (_logits(base, [first, row], Collator())[-9:] for first in (before, other))
        sharing = alone
        if base.device.type == "cpu":
            twins = _logits(base, [row, row[:21] + end], Collator(share=True))
            sharing = twins[21:30] if row[-9:] < end else twins[30:]
    model.train(training)
    return torch.equal(after, unmoved) and all(_difference(found, alone) <= limit for found in (after, sharing))


def _limit(base: Any, row: list[int], more: list[int], alone: torch.Tensor) -> float:
    """The largest difference from `alone` [tokens, words], a row's last logits by itself, that rounding explains.

    In 16 bit a deep model's rounding can exceed _IN_HALVES, so it is measured: with the model's own attention, and the
    row beside a longer one.
    """
    if alone.dtype == torch.float32:
        return _ROUNDING
    padding = [0] * len(more)
    ids, mask = [row + padding, more + row], [[1] * len(row) + padding, [1] * len(row + more)]
    inputs = {"input_ids": torch.tensor(ids), "attention_mask": torch.tensor(mask)}
    logits = base(**{name: part.to(base.device) for name, part in inputs.items()}, use_cache=False).logits
    noise = _difference(logits[0, len(row) - len(alone) : len(row)], alone)
    return max(_IN_HALVES, _TIMES * noise)


def _difference(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found.float() - expected.float()).norm() / expected.float().norm())


def _logits(base: Any, rows: list[list[int]], collator: Collator) -> torch.Tensor:
    """The logits [laid tokens, words] of rows laid end to end, none of them trained."""
    batch = collator([{"input_ids": row, "labels": [prompts.IGNORED] * len(row)} for row in rows])
    for name in ("labels", "columns", "kept", "targets"):
        del batch[name]
    batch = {name: part.to(base.device) if torch.is_tensor(part) else part for name, part in batch.items()}
    logits: torch.Tensor = base(**batch, use_cache=False).logits[0]
    return logits
