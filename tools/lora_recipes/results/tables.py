"""How figures are written in tables: intervals, differences, durations."""

import math
from collections.abc import Sequence
from typing import Any

from lora_recipes.results import intervals

DIFFERENCE_NOTE = "Brackets hold 95 % intervals; * marks a paired difference whose interval excludes zero."
TOO_FEW = f"With fewer than {intervals.LEAST} questions no difference is marked: they say little about the systems."


def number(value: Any) -> str:
    """Four decimals below ten, fewer above; a dash for what is absent or not finite."""
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not math.isfinite(value):
        return "–"
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:.4f}" if abs(value) < 10 else f"{value:,.2f}"


def note(rows: int) -> str:
    """What stands below a table of so many questions."""
    return DIFFERENCE_NOTE if rows >= intervals.LEAST else f"{DIFFERENCE_NOTE}\n{TOO_FEW}"


def interval(value: Any) -> str:
    """`mean [low, high]` of a metric with an interval, or a plain number."""
    if not isinstance(value, dict):
        return number(value)
    if value.get("low") is None or value.get("high") is None:
        return number(value.get("mean"))
    return f"{number(value.get('mean'))} [{number(value['low'])}, {number(value['high'])}]"


def excludes_zero(value: dict[str, Any]) -> bool:
    if (value.get("n") or intervals.LEAST) < intervals.LEAST:
        return False
    low, high = value.get("low"), value.get("high")
    return bool(value.get("excludes_zero", low is not None and high is not None and (low > 0 or high < 0)))


def difference(value: Any) -> str:
    """`+mean [low, high]`, with * when the interval excludes zero; a dash without one."""
    if not isinstance(value, dict) or not isinstance(value.get("mean"), (int, float)):
        return "–"
    signed = [
        f"{value[name]:+.4f}" if isinstance(value.get(name), (int, float)) else "–" for name in ("mean", "low", "high")
    ]
    return f"{signed[0]} [{signed[1]}, {signed[2]}]{' *' if excludes_zero(value) else ''}"


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """Rows of cells as lines for a terminal, the columns one below another."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join(lines)


def duration(seconds: Any) -> str:
    """Seconds as `1 h 02 min`, `2 min 05 s` or `5 s`."""
    if not isinstance(seconds, (int, float)) or not math.isfinite(seconds):
        return "–"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02} min"
    return f"{minutes} min {rest:02} s" if minutes else f"{rest} s"
