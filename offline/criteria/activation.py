"""Criteria that look at what an expert computes (MC-Suite, equations 11 to 13).

A_p [T_p, D] are the outputs of expert p for its tokens, without the gate's weight.
"""

from __future__ import annotations

import numpy as np

from offline.calibration.statistics import Floats, LayerEvidence
from offline.criteria.weight import to_others

LEAST_DEVIATION = 1e-8  # the log of a smaller one would drown the other dimensions


def activation_similarity(evidence: LayerEvidence) -> Floats:
    """EAS: mean cosine of the expert's outputs with each other expert's, summed, [E].

    The mean over all pairs of tokens is the product of the experts' mean unit vectors.
    """
    directions = evidence.seen.units / at_least_one(evidence)[:, None]
    return to_others(directions @ directions.T)


def activation_entropy(evidence: LayerEvidence) -> Floats:
    """EAE: sum over hidden dimensions of ln(standard deviation over the tokens), [E].

    The deviation is the population's: 0, so at its floor, for fewer than two tokens.
    """
    variance = evidence.seen.deviations / at_least_one(evidence)[:, None]
    deviation = np.maximum(np.sqrt(variance), LEAST_DEVIATION)
    return np.asarray(np.log(deviation).sum(axis=1))


def activation_outliers(evidence: LayerEvidence) -> Floats:
    """EAO: entries outside mean +- 3 standard deviations of their dimension, [E]."""
    return evidence.seen.outliers


def activation_norm(evidence: LayerEvidence) -> Floats:
    """EAN: sum over hidden dimensions of the l2 norm over the tokens, [E]."""
    return np.asarray(np.sqrt(evidence.seen.squares).sum(axis=1))


def at_least_one(evidence: LayerEvidence) -> Floats:
    """Return T_p to divide sums by, [E]; those of an expert without tokens are zero already."""
    counts = evidence.seen.counts
    return np.where(counts > 0, counts, 1.0)
