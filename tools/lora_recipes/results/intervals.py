"""95 % intervals: Student's t of means and paired differences, Wilson's of shares.

They say how far the numbers depend on which questions were asked, and nothing about another training seed.
"""

from collections.abc import Sequence
from typing import Any

LEAST = 10
"""Rows below which no difference is called one: an interval of so few says little about its own width."""


def interval(values: Sequence[float], weights: Sequence[float] | None = None) -> dict[str, Any]:
    """`mean` of the rows with the `low` and `high` end of its 95 % interval, and `n` rows; one row has no ends.

    With weights: the weighted mean, a ratio of two means, by its linearization (Cochran, Sampling Techniques, 1977,
    section 6.4). Raises ValueError for no rows.
    """
    import numpy as np
    from scipy import stats

    if not len(values):
        raise ValueError("an interval needs at least one row")
    data = np.asarray(values, dtype=np.float64)
    shares = np.ones_like(data) if weights is None else np.asarray(weights, dtype=np.float64)
    mean = float((data * shares).sum() / shares.sum())
    if len(data) == 1:
        return {"mean": mean, "low": None, "high": None, "n": 1}
    error = stats.sem(shares / shares.mean() * (data - mean))  # of values whose mean is zero
    half = float(stats.t.ppf(0.975, len(data) - 1) * error)
    return {"mean": mean, "low": mean - half, "high": mean + half, "n": len(data)}


def difference(
    values: Sequence[float], other: Sequence[float], weights: Sequence[float] | None = None
) -> dict[str, Any]:
    """The interval of the mean of `values - other`, paired by row, and whether it `excludes_zero`; fewer than LEAST
    rows never do.

    Raises ValueError when the two have not the same rows.
    """
    if len(values) != len(other):
        raise ValueError("paired rows are needed")
    found = interval([a - b for a, b in zip(values, other, strict=True)], weights)
    return {**found, "excludes_zero": found["n"] >= LEAST and (found["low"] > 0 or found["high"] < 0)}


def share(successes: int, rows: int) -> tuple[float, float]:
    """The ends of the interval of a share (Wilson, 1927), which has a width at 0 and at 1 too."""
    from scipy import stats

    low, high = stats.binomtest(successes, rows).proportion_ci(method="wilson")
    return float(low), float(high)
