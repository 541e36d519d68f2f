"""A median and how sure it is."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import median
from typing import Any


def median_of(values: Sequence[float], level: float = 0.95) -> dict[str, Any]:
    """The median of ``values``, how many they are, and an interval for that of what they are from.

    The interval runs from the k-th lowest to the k-th highest value: it holds the median with
    1 - 2 P(fewer than k of n fair coins show heads), whatever the distribution. k is the largest
    with which that is at least ``level``, or 1: the ``confidence`` says what it is.
    """
    ordered, n = sorted(values), len(values)
    confidence = [1 - 2 * sum(math.comb(n, i) for i in range(k)) / 2**n for k in range(n // 2 + 1)]
    k = max((k for k in range(1, n // 2 + 1) if confidence[k] >= level), default=1)
    return {
        "median": round(median(ordered), 4),
        "interval": [round(ordered[k - 1], 4), round(ordered[-k], 4)],
        "confidence": round(confidence[k], 3) if n > 1 else 0.0,
        "n": n,
    }
