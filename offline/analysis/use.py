"""How evenly a layer's experts are used, and how sure its router is. E experts, T tokens."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from offline.analysis.co_activation import strongest_pair
from offline.calibration.statistics import Floats, LayerEvidence
from offline.results.analysis import LayerUse
from offline.results.balance import coefficient_of_variation, shares


def use_of(evidence: LayerEvidence, experts: Sequence[int] | None = None) -> LayerUse:
    """Describe one layer.

    :param experts: ids to call its experts by, if they are not 0..E-1
    """
    seen = evidence.seen
    ids = tuple(range(seen.num_experts)) if experts is None else tuple(experts)
    assert len(ids) == seen.num_experts
    share = shares(seen.counts)
    assignments = float(seen.counts.sum())
    return LayerUse(
        layer=evidence.layer,
        top_k=evidence.top_k,
        tokens=seen.tokens,
        experts=ids,
        share=plain(share),
        cv=coefficient_of_variation(share),
        max_over_mean=float(share.max() * len(share)),
        entropy=entropy(share),
        entropy_share=entropy_share(share),
        unseen=tuple(ids[i] for i in np.flatnonzero(seen.counts == 0)),
        mean_weight=float(seen.weights.sum()) / assignments if assignments else None,
        weight_bins=plain(shares(seen.weight_bins.sum(axis=0))),
        coverage=plain(seen.vocabulary.mean(axis=1)),
        coverage_of_all=float(seen.vocabulary.any(axis=0).mean()),
        strongest_pair=strongest_pair(seen, ids),
    )


def entropy(share: Floats) -> float:
    """Return -sum p ln p of shares, in nats: ln E of even use, 0 of one expert alone."""
    used = share[share > 0]
    return abs(float(-(used * np.log(used)).sum()))  # no -0.0 for a single one


def entropy_share(share: Floats) -> float:
    """Return the entropy as a share of the highest, ln E; 1 for a single expert."""
    return entropy(share) / float(np.log(len(share))) if len(share) > 1 else 1.0


def plain(values: Floats) -> tuple[float, ...]:
    """Return an array's numbers."""
    return tuple(float(value) for value in values)
