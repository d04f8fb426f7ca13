"""95 % intervals: of means and paired differences by the bootstrap, of shares by Wilson's formula.

The percentile bootstrap over the rows (Efron and Tibshirani, An Introduction to the Bootstrap, 1993,
chapter 13) says how far the numbers depend on which questions were asked, and nothing about
another training seed. With fewer than some 20 rows the intervals come out too narrow.
"""

from collections.abc import Sequence
from typing import Any

RESAMPLES = 10_000
SEED = 20_240_601
_BLOCK = 4_000_000
"""Numbers held at once, so that many rows do not take gigabytes."""


def interval(values: Sequence[float], weights: Sequence[float] | None = None) -> dict[str, Any]:
    """`mean` of the rows with the `low` and `high` end of its 95 % interval, and `n` rows.

    With weights: the weighted mean, the rows being drawn with their weights.
    Raises ValueError for no rows.
    """
    import numpy as np
    from scipy import stats

    if not len(values):
        raise ValueError("an interval needs at least one row")
    data = np.asarray(values, dtype=np.float64)
    shares = np.ones_like(data) if weights is None else np.asarray(weights, dtype=np.float64)
    low = high = mean = _weighted_mean(data, shares)
    if len(data) > 1:
        settings: dict[str, Any] = {"n_resamples": RESAMPLES, "batch": max(1, _BLOCK // len(data)), "rng": SEED}
        found = stats.bootstrap((data, shares), _weighted_mean, paired=True, method="percentile", **settings)
        low, high = np.percentile(found.bootstrap_distribution, [2.5, 97.5])
    return {"mean": float(mean), "low": float(low), "high": float(high), "n": len(data)}


def _weighted_mean(data: Any, shares: Any, axis: int = -1) -> Any:
    return (data * shares).sum(axis=axis) / shares.sum(axis=axis)


def difference(
    values: Sequence[float], other: Sequence[float], weights: Sequence[float] | None = None
) -> dict[str, Any]:
    """The interval of the mean of `values - other`, paired by row, and whether it `excludes_zero`.

    Raises ValueError when the two have not the same rows.
    """
    if len(values) != len(other):
        raise ValueError("paired rows are needed")
    found = interval([a - b for a, b in zip(values, other, strict=True)], weights)
    return {**found, "excludes_zero": found["n"] > 1 and (found["low"] > 0 or found["high"] < 0)}


def share(successes: int, rows: int) -> tuple[float, float]:
    """The ends of the interval of a share (Wilson, 1927), which has a width at 0 and at 1 too."""
    from scipy import stats

    low, high = stats.binomtest(successes, rows).proportion_ci(method="wilson")
    return float(low), float(high)
