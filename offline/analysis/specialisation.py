"""How differently domains of text use the experts of a layer."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from offline.analysis.use import entropy, plain
from offline.calibration.statistics import Floats, LayerStatistics
from offline.results.analysis import DomainUse
from offline.results.balance import shares


def domain_use(layer: int, domains: Mapping[str, LayerStatistics]) -> DomainUse:
    """Describe one layer by domain; a domain without a token here has a share of 0 everywhere."""
    found = {name: shares(seen.counts) for name, seen in domains.items()}
    return DomainUse(
        layer=layer,
        shares={name: plain(share) for name, share in found.items()},
        divergence=divergence([share for share in found.values() if share.any()]),
    )


def divergence(distributions: Sequence[Floats]) -> float | None:
    """Return the Jensen-Shannon divergence of n shares [E], as a share of its highest, ln n.

    Each counts the same, however many tokens it has: H(mean) - mean(H). None for fewer than two.
    """
    if len(distributions) < 2:
        return None
    mixed = entropy(np.mean(distributions, axis=0))
    own = math.fsum(map(entropy, distributions)) / len(distributions)
    return min(1.0, max(0.0, (mixed - own) / math.log(len(distributions))))
