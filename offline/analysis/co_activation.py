"""Co-activation: which experts tokens choose together, against what their use alone would make.

A pair's expected number of tokens is proportional to T_p T_q, scaled so that all pairs together
are expected as often as they are seen: choosing k *different* experts makes the plain product
T_p T_q / T too high for every pair.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from offline.calibration.statistics import Floats, LayerEvidence, LayerStatistics
from offline.results.analysis import CoActivation, Pair


def lift(seen: LayerStatistics) -> Floats:
    """Return tokens that chose both / expected [E, E]; nan where nothing is expected.

    1 is what two experts of their use would share; the diagonal is nan.
    """
    products = np.outer(seen.counts, seen.counts)
    np.fill_diagonal(products, 0)
    total = seen.pairs.sum()
    expected = products * (total / products.sum()) if total > 0 else np.zeros_like(products)
    unknown = np.full_like(products, np.nan)
    return np.divide(seen.pairs, expected, out=unknown, where=expected > 0)


def strongest_pair(seen: LayerStatistics, experts: Sequence[int]) -> Pair | None:
    """Return the pair with the highest lift, the first of equals; None where no two meet."""
    found = np.triu(np.nan_to_num(lift(seen), nan=0.0), 1)
    p, q = divmod(int(found.argmax()), len(found))
    if found[p, q] <= 0:
        return None
    both, tokens = (experts[p], experts[q]), float(seen.pairs[p, q])
    return Pair(experts=both, tokens=tokens, lift=float(found[p, q]))


def co_activation(
    evidence: LayerEvidence, experts: Sequence[int] | None = None
) -> CoActivation | None:
    """Return the whole matrix of a layer; None where no token chose two experts."""
    seen = evidence.seen
    if seen.pairs.sum() <= 0:
        return None
    rows = tuple(
        tuple(None if np.isnan(value) else float(value) for value in row) for row in lift(seen)
    )
    ids = range(seen.num_experts) if experts is None else experts
    return CoActivation(layer=evidence.layer, experts=tuple(ids), lift=rows)
