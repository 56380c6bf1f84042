"""Errors, paired differences and ties, from the replicates that every row carries.

Replicate b is the metric with block b of the samples left out (the delete-a-block jackknife); block b holds
the same noise for every method, so the differences of two methods' replicates are errors of their difference.
"""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

Estimate = tuple[float, Sequence[float]]  # a value and its replicates
NODES, WEIGHTS = np.polynomial.legendre.leggauss(64)


class Difference(NamedTuple):
    """a - b, its standard error, and the two-sided p-value of its being zero."""

    difference: float
    stderr: float
    p: float


def stderr(replicates: Sequence[float]) -> float:
    """The jackknife's standard error, sqrt((B - 1) / B sum_b (r_b - mean)^2); NaN of fewer than two."""
    return float(stderrs(np.asarray(replicates, dtype=float)))


def stderrs(replicates: np.ndarray) -> np.ndarray:
    """`stderr` of (..., B) replicates: (...)."""
    blocks = replicates.shape[-1]
    if blocks < 2:
        return np.full(replicates.shape[:-1], math.nan)
    spread = replicates - replicates.mean(-1, keepdims=True)
    return np.sqrt((blocks - 1) / blocks * np.square(spread).sum(-1))


def interval(value: float, replicates: Sequence[float], level: float = 0.95) -> tuple[float, float]:
    """The t interval, B - 1 degrees of freedom, for the metric's expectation at this number of samples.

    Where a method is all but perfect, a distance is quadratic in its error and the jackknife doubles its
    variance: the interval is then too wide (for FID it covers 99 % instead of 95 %), never too narrow.
    """
    from scipy.special import stdtrit  # what scipy.stats has it from, without its second of importing

    if len(replicates) < 2:
        return math.nan, math.nan
    half = float(stdtrit(len(replicates) - 1, (1 + level) / 2)) * stderr(replicates)
    return value - half, value + half


def bias_corrected(value: float, replicates: Sequence[float]) -> float:
    """The value freed of its bias of order 1/N, B v - (B - 1) mean(r): that of infinitely many samples.

    Its pseudo-values B v - (B - 1) r_b have the spread of the replicates, so that its interval is
    `interval(bias_corrected(v, r), r)`. For FID it covers the population's value 95 to 97 % (measured), and
    up to 99 % where that is next to 0. It is right for FID and the Inception score, but not for the sliced
    Wasserstein distance, precision or recall, whose bias is of another order.
    """
    count = len(replicates)
    return count * value - (count - 1) * float(np.mean(replicates)) if count else math.nan


def paired_difference(a: Estimate, b: Estimate) -> Difference:
    """How two methods of one column differ, by a paired t-test on replicates of the same blocks.

    Without an error (fewer than two replicates, or NaN) p is NaN; equal replicates give 0 or 1.
    Raises ValueError if the two have different numbers of blocks.
    """
    (difference,) = paired_differences([a], b)
    return difference


def paired_differences(several: Sequence[Estimate], b: Estimate) -> list[Difference]:
    """`paired_difference` of each of several and b."""
    value_b, r_b = b
    for _, r_a in several:
        if len(r_a) != len(r_b):
            raise ValueError(
                f"Replicates pair only block by block: one side has {len(r_a)} and the other {len(r_b)}; "
                "measure both with the same number of blocks."
            )
    if not several:
        return []
    values = np.array([value for value, _ in several], dtype=float)
    differences = values - value_b
    errors = stderrs(np.array([r_a for _, r_a in several], dtype=float) - np.asarray(r_b, dtype=float))
    greater = np.maximum(abs(values), abs(value_b))
    rounding = errors <= 1e-12 * greater  # and not spread
    alike = abs(differences) <= 1e-9 * greater
    with np.errstate(divide="ignore", invalid="ignore"):
        p = two_sided(abs(differences) / errors, len(r_b) - 1)
    p = np.where(rounding, alike.astype(float), p)
    p[np.isnan(differences)] = math.nan
    return [Difference(*map(float, facts)) for facts in zip(differences, errors, p)]


def two_sided(t: np.ndarray, freedom: int) -> np.ndarray:
    """P(|T| >= t) of Student's t, to 12 digits up to 500 degrees of freedom: sin(a)^(freedom - 1), integrated
    up to the angle whose cotangent is t / sqrt(freedom), as a share of that to pi / 2. NaN without freedom.
    scipy.special's stdtr is the same, but its import takes 0.2 s, which every table would wait for.
    """

    def area(angles: np.ndarray) -> np.ndarray:
        half = angles / 2
        return half * (np.sin(np.multiply.outer(half, 1 + NODES)) ** (freedom - 1) @ WEIGHTS)

    return area(np.arctan2(np.sqrt(freedom), t)) / area(np.array(math.pi / 2))


def holm(p: Mapping[str, float], level: float = 0.05) -> set[str]:
    """The hypotheses rejected at a family-wise error of `level` (Holm, 1979); a NaN is never rejected."""
    rejected = set()
    ranked = sorted((value, name) for name, value in p.items() if not math.isnan(value))
    for rank, (value, name) in enumerate(ranked):
        if value > level / (len(p) - rank):
            break
        rejected.add(name)
    return rejected


def ties(column: Mapping[str, Estimate], better: str, level: float = 0.05) -> set[str]:
    """The methods of a column that cannot be told from its best one, the best among them.

    `better` is "lower" or "higher". A method whose value is not finite is no tie; one without errors is.
    """
    values = {name: value for name, (value, _) in column.items() if math.isfinite(value)}
    if not values:
        return set()
    best = {"lower": min, "higher": max}[better](values, key=values.__getitem__)
    others = [name for name in values if name != best]
    differences = paired_differences([column[name] for name in others], column[best])
    p = {name: difference.p for name, difference in zip(others, differences)}
    return values.keys() - holm(p, level)
