"""Whether a merged folder is what its adapter makes of the base: by its files and its tensors."""

from pathlib import Path
from typing import Any

from lora_recipes import models, shards
from lora_recipes.mergeplan import Change, Plan
from lora_recipes.merging import base_weight
from lora_recipes.shards import Stored

import click

RECORD = "merge.json"
"""Written last into a merged folder: what was merged, the hash of every file, the divergences."""

_SAMPLE = 12
_BLOCK = 1 << 20
"""Elements that are compared at a time: float64 takes room."""

_FLIPS = 1e-3
"""The share of elements that may round to another NF4 code than on the machine that merged: the mean
over block scales depends on the order of the sum."""


def require_files(folder: Path) -> dict[str, Any]:
    """The record of a merged folder. Raises click.ClickException naming a file that is not as recorded."""
    if not (folder / RECORD).is_file():
        raise click.ClickException(f"{folder} holds no {RECORD}; merge first, or give -o.")
    record = shards.read_json(folder / RECORD)
    if not {"onto", "adapter", "kl", "verdict", "files"} <= set(record):
        raise click.ClickException(f"{folder / RECORD}: not a record of a merge; merge again.")
    for name, expected in record["files"].items():
        if not (folder / name).is_file():
            raise click.ClickException(f"{folder / name}: missing; merge again.")
        if shards.sha256(folder / name) != expected:
            raise click.ClickException(f"{folder / name}: changed since it was merged (sha256 differs); merge again.")
    return record


def adapter_hashes(adapter: Path) -> dict[str, str]:
    return {name: shards.sha256(adapter / name) for name in models.ADAPTER_FILES}


def require_tensors(plan: Plan, folder: Path) -> int:
    """Compare written weights with W + s·B·A computed anew in float64; the number of weights compared.

    A sample of the changed weights, first and last among them, may differ by one rounding of the
    dtype; a sample of the others not at all. All names must be there.
    Raises click.ClickException naming file and weight.
    """
    written = shards.tensors_of(folder)
    for entry in plan.weights:
        found = written.get(entry.name)
        if found is None or (found.shape, found.dtype) != (entry.shape, entry.dtype):
            raise click.ClickException(f"{folder}: {entry.name} is not there as the plan has it; merge again.")
    rewritten = {entry.name for entry in plan.rewritten}
    kept = [entry for entry in plan.weights if entry.name not in rewritten]
    for entry in _spread(kept):
        if shards.read_bytes(entry) != shards.read_bytes(written[entry.name]):
            raise _differs(written[entry.name], "the base's")
    for entry in _spread(plan.rewritten):
        if not _is_sum(plan, entry, shards.read(written[entry.name])):
            raise _differs(written[entry.name], "base + adapter by more than one rounding")
    return len(_spread(kept)) + len(_spread(plan.rewritten))


def _differs(stored: Stored, what: str) -> click.ClickException:
    return click.ClickException(f"{stored.file}: {stored.name} differs from {what}; merge again.")


def _spread(entries: list[Stored]) -> list[Stored]:
    """Up to _SAMPLE entries at even distances, the first and the last among them."""
    last = len(entries) - 1
    return [entries[n] for n in sorted({round(i * last / (_SAMPLE - 1)) for i in range(_SAMPLE)})] if entries else []


def _is_sum(plan: Plan, entry: Stored, found: Any) -> bool:
    """Whether every element is the exact value rounded once.

    The bound is one unit in the last place of the dtype, and the bound of a float32 dot product of
    r + 2 terms (Higham, Accuracy and Stability of Numerical Algorithms, section 3.1).
    """
    import torch

    change = plan.changes.get(entry.name, Change())
    if change.value and not change.lora_a:
        return bool(torch.equal(shards.read(change.value).to(found.dtype), found))
    base = base_weight(plan, entry)
    parts = (change.lora_a, change.lora_b, change.magnitude)
    a, b, trained = (shards.read(part).double() if part else None for part in parts)
    coarse = torch.finfo(plan.quantized_from).eps if entry.name in plan.quantized else 0.0

    def outside(block: slice) -> int:
        exact, terms = base[block].double(), 2
        size = exact.abs()
        slack = coarse * size
        if a is not None and b is not None:
            exact, terms = exact + change.scale * (b[block] @ a), terms + a.shape[0]
            size = size + abs(change.scale) * (b[block].abs() @ a.abs())
        if trained is not None:
            factor = (trained[block] / exact.norm(dim=1)).unsqueeze(1)
            exact, size, slack, terms = exact * factor, size * factor.abs(), slack * factor.abs(), terms + len(base[0])
        bound = torch.finfo(found.dtype).eps * exact.abs() + terms * torch.finfo(torch.float32).eps * size + slack
        return int(((found[block].double() - exact).abs() > bound).sum())

    step = max(1, _BLOCK // entry.shape[1])
    wrong = sum(outside(slice(n, n + step)) for n in range(0, entry.shape[0], step))
    return wrong <= (_FLIPS * entry.count if entry.name in plan.quantized else 0)
