"""Intervals of shares, and what of two shares on the same items is beyond chance. Pure."""

from __future__ import annotations

import math
from statistics import NormalDist

_Z_95 = 1.959963984540054  # two-sided 95 % of a normal distribution
_POWER = 0.8


def wilson(mean: float, count: int) -> tuple[float, float]:
    """Return the 95 % Wilson interval of a share: right at 0 and 1 and for few items.

    Both ends are NaN where ``mean`` is no share.
    """
    if not 0 <= mean <= 1:  # a metric of another unit, or none that items have
        return math.nan, math.nan
    spread = _Z_95**2 / count
    centre = (mean + spread / 2) / (1 + spread)
    half = _Z_95 * math.sqrt(mean * (1 - mean) / count + spread / (4 * count)) / (1 + spread)
    return max(0.0, centre - half), min(1.0, centre + half)


def paired_difference(
    both: int, only_first: int, only_second: int, neither: int
) -> tuple[float, float]:
    """Return the 95 % interval of the first share less the second, of the same items.

    Newcombe's tenth method (Statistics in Medicine 17, 1998): Wilson's intervals of both shares,
    put together by how much the two agree.
    """
    a, b, c, d = both, only_first, only_second, neither
    count = a + b + c + d
    first, second = (a + b) / count, (a + c) / count
    (low_1, high_1), (low_2, high_2) = wilson(first, count), wilson(second, count)
    margins = (a + b) * (c + d) * (a + c) * (b + d)
    cross: float = a * d - b * c
    if cross > 0:
        cross = max(0.0, cross - count / 2)
    phi = cross / math.sqrt(margins) if margins else 0.0

    def reach(one: float, other: float) -> float:
        return math.sqrt(max(0.0, one * one - 2 * phi * one * other + other * other))

    value = first - second
    below = reach(first - low_1, high_2 - second)
    above = reach(high_1 - first, second - low_2)
    return max(-1.0, value - below), min(1.0, value + above)


def mcnemar(more: int, less: int) -> float:
    """Return how likely so many more are by chance: the exact one-sided test of pairs that differ.

    :param more: pairs of which only the one in question has it
    :param less: pairs of which only the other one has it
    """
    if more <= less:
        return 1.0
    from scipy.stats import binomtest

    return float(binomtest(more, more + less, 0.5, alternative="greater").pvalue)


def doubled(rate: float) -> float:
    """Return twice a rate; above a third, half of the way to 1, which is less."""
    return min(2 * rate, (1 + rate) / 2)


def pairs_needed(rate: float, level: float) -> int | None:
    """Return how many pairs show a doubling of ``rate`` in 8 of 10 experiments.

    Of McNemar's test at ``level``, one-sided (Miettinen 1968), where the two answer independently:
    the more they agree, the fewer pairs are enough. None where nothing is left to become.
    """
    worse = doubled(rate)
    step = worse - rate
    if step <= 0:
        return None
    differ = worse * (1 - rate) + rate * (1 - worse)
    normal = NormalDist()
    reach = normal.inv_cdf(1 - level) * math.sqrt(differ)
    reach += normal.inv_cdf(_POWER) * math.sqrt(differ - step * step)
    return math.ceil((reach / step) ** 2)
