"""Steps, epochs, warm-up and the global batch: what the numbers of a run file come to."""

import math
from typing import Any

from lora_recipes.check import deepspeed
from lora_recipes.check.checked_run import CheckedRun
from lora_recipes.config import values

_MANY_EPOCHS = 20
_LONG_WARMUP = 0.2


def check(checked: CheckedRun, rows: int | None, tokens: int | None = None) -> None:
    """The global batch and what follows from it. `rows` and `tokens` are those of the training rows."""
    micro, accumulation = _whole(checked, "micro_batch_size"), _whole(checked, "gradient_accumulation_steps")
    processes = checked.processes
    deepspeed.check(checked, micro, accumulation, processes)
    batch = micro * accumulation * processes
    made = f"global batch {batch} ({micro} x {accumulation} x {processes} process{'' if processes == 1 else 'es'})"
    facts: dict[str, Any] = {"global_batch": batch, "processes": processes}
    units = _units(checked, rows, tokens)
    if units is None:
        total = int(_positive(checked, "max_steps"))
        _report(checked, facts, f"{made}, {total} steps" if total else made, total, None)
        return
    per_epoch = values.steps_per_epoch(units, micro * processes, accumulation)
    packed = checked.config.get("sample_packing") is True
    max_steps, wanted = int(_positive(checked, "max_steps")), _positive(checked, "num_epochs") or 1.0
    total = max_steps or math.ceil(per_epoch * wanted)
    epochs = max_steps / per_epoch if max_steps else wanted
    about = "about " if packed else ""
    facts |= {"steps_per_epoch": per_epoch, "steps": total, "epochs": round(epochs, 2), "estimated": packed}
    if max_steps:
        line = f"{made}, {about}{per_epoch} steps an epoch, {total} steps are {about}{_short(epochs)} epochs"
    else:
        line = f"{made}, {about}{per_epoch} steps an epoch, {about}{total} in {_short(epochs)} epochs"
    _report(checked, facts, line.replace("1 epochs", "1 epoch") if epochs == 1 else line, total, per_epoch)
    if max_steps and epochs > _MANY_EPOCHS:
        _many_epochs(checked, max_steps, epochs, per_epoch, packed)


def _positive(checked: CheckedRun, key: str) -> float:
    """A number above 0 that a run can have, or 0."""
    value = checked.number(key)
    return float(value) if 1e-9 < value < 1e12 else 0.0


def _whole(checked: CheckedRun, key: str) -> int:
    return max(1, int(_positive(checked, key)))


def _units(checked: CheckedRun, rows: int | None, tokens: int | None) -> int | None:
    """What a batch is made of: rows, or with sample_packing sequences of sequence_len tokens."""
    if checked.config.get("sample_packing") is not True:
        return rows or None
    length = _whole(checked, "sequence_len")
    return math.ceil(tokens / length) if tokens and length > 1 else None


def _short(number: float) -> str:
    return f"{number:.0f}" if number >= 10 or number == int(number) else f"{number:.1f}"


def _report(checked: CheckedRun, facts: dict[str, Any], line: str, total: int, per_epoch: int | None) -> None:
    if not total:
        checked.report.fact("batch", facts, line)
        checked.report.skip("steps and epochs", "the number of training rows is not known here")
        return
    lines = [line]
    warmup = _warmup(checked, total)
    facts |= {"warmup_steps": warmup}
    lines.append(f"warm-up {warmup} of {total} steps ({min(1.0, warmup / total):.0%})")
    counts = {kind: _times(checked, kind, total, per_epoch) for kind in ("eval", "save")}
    facts |= {f"{kind}s": count for kind, count in counts.items() if count is not None}
    words = [f"{word} {counts[kind]} x" for kind, word in (("eval", "evaluated"), ("save", "saved")) if counts[kind]]
    if words:
        lines.append(", ".join(words))
    checked.report.fact("batch", facts, *lines)
    if warmup > 2 and warmup / total > _LONG_WARMUP:
        checked.warning(
            "warm-up",
            "warmup_steps" if "warmup_steps" in checked.config else "warmup_ratio",
            f"{warmup} of {total} steps are warm-up, with less than the full learning rate",
            f"at most {_LONG_WARMUP:.0%} of the steps",
            f"write warmup_steps: {max(2, round(total * 0.05))}" if total >= 20 else "delete it, or train more steps",
        )


def _warmup(checked: CheckedRun, total: int) -> int:
    given = [checked.number(key) if key in checked.config else None for key in ("warmup_steps", "warmup_ratio")]
    steps, ratio = (value if value is not None and 0 <= value < 1e12 else None for value in given)
    return values.warmup_steps(total, steps, ratio)


def _times(checked: CheckedRun, kind: str, total: int, per_epoch: int | None) -> int | None:
    """How often a run evaluates or saves; None where that is not known, or never."""
    config = checked.config
    if kind == "eval" and not config.get("test_datasets") and not _positive(checked, "val_set_size"):
        return None
    steps, an_epoch = _positive(checked, f"{kind}_steps"), _positive(checked, f"{kind}s_per_epoch")
    if steps:
        return int(1 / steps) if steps < 1 else int(total // steps)
    epochs = total / per_epoch if per_epoch else None
    if an_epoch:
        return max(1, round(an_epoch * epochs)) if epochs else None
    strategy = config.get(f"{kind}_strategy") or ("epoch" if kind == "save" else None)
    return max(1, math.ceil(epochs)) if strategy == "epoch" and epochs else None


def _many_epochs(checked: CheckedRun, max_steps: int, epochs: float, per_epoch: int, packed: bool) -> None:
    how = f" packed to {_whole(checked, 'sequence_len')} tokens" if packed else ""
    checked.warning(
        "epochs",
        "max_steps",
        f"{max_steps} steps{how} are {'about ' if packed else ''}{epochs:.0f} epochs",
        f"at most {_MANY_EPOCHS} passes over the rows",
        f"write num_epochs: 3, or max_steps: {3 * per_epoch}",
    )
