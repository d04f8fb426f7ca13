"""Whether the tensors of a merged folder are what its adapter makes of the base."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lora_recipes.merging.folding import rounded_to_nf4
from lora_recipes.merging.merge_plan import Change, Plan
from lora_recipes.models import adapters, shards
from lora_recipes.models.shards import Stored
from lora_recipes.support import files

import click

RECORD = "merge.json"
"""Written last into a merged folder: what was merged, the hash of every file, the divergences."""

_ROWS = 1 << 16
"""Elements of a changed weight that are compared, in whole rows."""

_NF4 = 12
"""Weights that are rounded to NF4 anew and compared: rounding takes a whole weight, and takes time."""

_BYTES = 1 << 22

_FLIPS = 1e-3
"""The share of elements that may round to another NF4 code than on the machine that merged: the mean
over block scales depends on the order of the sum."""


def adapter_hashes(adapter: Path) -> dict[str, str]:
    return {name: files.sha256(adapter / name) for name in adapters.FILES}


def require_tensors(plan: Plan, folder: Path) -> int:
    """Compare written weights with W + s·B·A computed anew in float64; the number of weights compared.

    Rows of every changed weight, first and last among them, may differ by one rounding of the dtype;
    of those that are rounded to NF4 a sample is compared. All the others may not differ at all.
    Raises click.ClickException naming file and weight.
    """
    written = shards.tensors_of(folder)
    for entry in plan.weights:
        found = written.get(entry.name)
        if found is None or (found.shape, found.dtype) != (entry.shape, entry.dtype):
            raise click.ClickException(f"{folder}: {entry.name} is not there as the plan has it; merge again.")
    rewritten = {entry.name for entry in plan.rewritten}
    kept = [entry for entry in plan.weights if entry.name not in rewritten]
    rounded = _spread([entry for entry in plan.rewritten if entry.name in plan.quantized], _NF4)
    summed = [entry for entry in plan.rewritten if entry.name not in plan.quantized]

    def compare(entry: Stored) -> None:
        if entry.name not in rewritten:
            if not _is_same(entry, written[entry.name]):
                raise _differs(written[entry.name], "the base's")
        elif not _is_sum(plan, entry, written[entry.name]):
            raise _differs(written[entry.name], "base + adapter by more than one rounding")

    with shards.workers() as pool:
        list(pool.map(compare, [*kept, *rounded, *summed]))
    return len(kept) + len(rounded) + len(summed)


def _differs(stored: Stored, what: str) -> click.ClickException:
    return click.ClickException(f"{stored.file}: {stored.name} differs from {what}; merge again.")


def _spread(found: Sequence[Any], count: int) -> list[Any]:
    """Up to `count` of them at even distances, the first and the last among them."""
    if len(found) <= count:
        return list(found)
    return [found[round(n * (len(found) - 1) / max(1, count - 1))] for n in range(count)]


def _is_same(one: Stored, other: Stored) -> bool:
    buffers = bytearray(_BYTES), bytearray(_BYTES)
    for begin in range(0, one.size, _BYTES):
        views = [memoryview(buffer)[: one.size - begin] for buffer in buffers]
        for stored, view in zip((one, other), views, strict=True):
            shards.read_into(stored, begin, view)
        if views[0] != views[1]:
            return False
    return True


def _rows(stored: Stored, numbers: list[int]) -> Any:
    """Some rows of a floating-point tensor, one below the other."""
    import torch

    each = bytearray(stored.size // stored.shape[0])
    if len(numbers) == stored.shape[0]:
        return shards.read(stored)
    return torch.cat([shards.read_rows(stored, n, n + 1, each).clone() for n in numbers])


def _is_sum(plan: Plan, entry: Stored, written: Stored) -> bool:
    """Whether every element looked at is the exact value rounded once.

    The bound is one unit in the last place of the dtype, and the bound of a float32 dot product of
    r + 2 terms (Higham, Accuracy and Stability of Numerical Algorithms, section 3.1).
    """
    import torch

    quantized = entry.name in plan.quantized
    change = plan.changes.get(entry.name, Change())
    columns = max(1, entry.count // entry.shape[0])
    numbers = _spread(range(entry.shape[0]), max(2, _ROWS // columns))
    found = _rows(written, numbers)
    if change.value is not None and change.left is None:
        return bool(torch.equal(change.value[numbers].to(found.dtype), found))
    if change.value is not None:
        exact = change.value[numbers].double()
    else:
        exact = (rounded_to_nf4(plan, entry)[numbers] if quantized else _rows(entry, numbers)).double()
    size, terms = exact.abs(), 2
    slack = (torch.finfo(plan.quantized_from).eps if quantized else 0.0) * size
    if change.left is not None:
        left, right = change.left[numbers].double(), change.right.double()
        exact, terms = exact + change.scale * (left @ right).view_as(exact), terms + len(right)
        size = size + abs(change.scale) * (left.abs() @ right.abs()).view_as(exact)
    if change.magnitude is not None:
        factor = (change.magnitude[numbers].double() / exact.norm(dim=1)).unsqueeze(1)
        exact, size, slack = exact * factor, size * factor.abs(), slack * factor.abs()
        terms += columns
    bound = torch.finfo(found.dtype).eps * exact.abs() + terms * torch.finfo(torch.float32).eps * size + slack
    wrong = int((~((found.double() - exact).abs() <= bound)).sum())  # NaN is wrong
    return wrong <= (_FLIPS * found.numel() if quantized else 0)
