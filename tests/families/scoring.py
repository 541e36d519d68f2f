"""How far the scores of two engines are from each other."""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np

from offline.calibration.scores import Scores

COUNTED = ("tokens", "counts", "pairs", "vocabulary")
NEARLY = ("weight_bins", "outliers")  # an entry at an edge may fall to either side by rounding
_SUMMED = (
    *("scores", "weights", "logit_gram", "mean", "deviations", "units"),
    *("norms", "weighted_norms", "peaks"),
)


@dataclass(frozen=True, slots=True)
class Distance:
    """The largest differences over all layers and domains.

    ``counted`` and ``nearly`` are numbers of things; ``summed`` and ``weights`` are relative to the
    largest entry of their kind in the layer.
    """

    counted: float
    nearly: float
    summed: float
    weights: float


def distance(found: Scores, expected: Scores) -> Distance:
    """Compare scores of the same domains and layers."""
    assert found.shape == expected.shape and found.sequences == expected.sequences
    pairs = [
        (found.domains[domain][layer], seen)
        for domain, layers in expected.domains.items()
        for layer, seen in layers.items()
    ]
    weights = [(found.weights[layer], one) for layer, one in expected.weights.items()]
    return Distance(
        counted=max(_apart(*pair, name) for pair in pairs for name in COUNTED),
        nearly=max(_apart(*pair, name) for pair in pairs for name in NEARLY),
        summed=max(_relative(*pair, name) for pair in pairs for name in _SUMMED),
        weights=max(_relative(*pair, field.name) for pair in weights for field in fields(pair[0])),
    )


def _apart(one: object, other: object, name: str) -> float:
    ours, theirs = (np.asarray(getattr(part, name), np.float64) for part in (one, other))
    return float(np.abs(ours - theirs).sum())


def _relative(one: object, other: object, name: str) -> float:
    ours, theirs = (np.asarray(getattr(part, name), np.float64) for part in (one, other))
    return float(np.abs(ours - theirs).max() / np.abs(theirs).max())
