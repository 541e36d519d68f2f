"""How evenly something is shared out: shares of a whole and how much they differ."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


def shares(counts: Floats) -> Floats:
    """Return each one's share of the whole [n]; zeros where there is nothing to share."""
    total = counts.sum()
    return counts / total if total > 0 else np.zeros_like(counts)


def coefficient_of_variation(share: Floats) -> float:
    """Return the population standard deviation / mean of shares [E]; 0 where all are 0.

    Even use has 0; one expert that takes everything has sqrt(E - 1).
    """
    mean = float(share.mean())
    return float(share.std()) / mean if mean > 0 else 0.0
