"""`Estimate`: a number that was measured on a sample, with its interval; how these are made."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

Floats = NDArray[np.float64]

FEWEST = 8  # documents of which a bootstrap says something: of fewer its intervals are too narrow
_RESAMPLES = 2000
_AT_ONCE = 1 << 21  # counts of documents that are held at the same time


class Estimate(BaseModel):
    """A value with its 95 % interval; the ends are None where the sample is too small for one."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    value: float
    low: float | None = None
    high: float | None = None

    def __str__(self) -> str:
        if self.low is None or self.high is None:
            return f"{self.value:.4g}"
        return f"{self.value:.4g} ({self.low:.4g} - {self.high:.4g})"


def bootstrap(sums: Floats, statistic: Callable[[Floats], Floats], seed: int = 0) -> Estimate:
    """Return a statistic of documents with its interval over documents drawn again (percentiles).

    Documents are drawn whole: the tokens of one are alike, and an interval over tokens would be
    too narrow. No interval where there are fewer than `FEWEST`.

    :param sums: [N, K] what was summed up of each document
    :param statistic: of sums over documents [..., K], [...]
    """
    count = len(sums)
    value = float(statistic(sums.sum(axis=0)))
    if count < FEWEST:
        return Estimate(value=value)
    rng = np.random.default_rng(seed)
    found = []
    for begin in range(0, _RESAMPLES, step := max(_AT_ONCE // count, 1)):
        size = min(step, _RESAMPLES - begin)
        drawn = rng.multinomial(count, np.full(count, 1 / count), size=size)  # [size, N]
        found.append(statistic(drawn @ sums))
    low, high = np.quantile(np.concatenate(found), (0.025, 0.975))
    return Estimate(value=value, low=min(float(low), value), high=max(float(high), value))


def difference(one: Estimate, other: Estimate) -> Estimate:
    """Return ``one - other`` of two shares, with the interval that their own give (Newcombe 1998,
    method 10); where both were measured on the same items it is rather too wide."""
    value = one.value - other.value
    if None in (one.low, one.high, other.low, other.high):
        return Estimate(value=value)
    assert one.low is not None and one.high is not None
    assert other.low is not None and other.high is not None
    below = math.hypot(one.value - one.low, other.high - other.value)
    above = math.hypot(one.high - one.value, other.value - other.low)
    return Estimate(value=value, low=value - below, high=value + above)


def worst(estimates: list[Estimate]) -> Estimate:
    """Return the greatest of several true values: it lies between the greatest of the low ends and
    the greatest of the high ends.

    :param estimates: at least one
    """
    value = max(one.value for one in estimates)
    lows = [one.low for one in estimates if one.low is not None]
    highs = [one.high for one in estimates if one.high is not None]
    if len(highs) < len(estimates):
        return Estimate(value=value)
    return Estimate(value=value, low=max(lows), high=max(highs))


def least(estimates: list[Estimate]) -> Estimate:
    """Return the least of several true values, as `worst` does the greatest."""
    return _mirrored(worst([_mirrored(one) for one in estimates]))


def _mirrored(one: Estimate) -> Estimate:
    low, high = (None if end is None else -end for end in (one.high, one.low))
    return Estimate(value=-one.value, low=low, high=high)
