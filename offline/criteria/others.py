"""Criteria of other papers, and readings of MC-Suite's that go by a name of their own."""

from __future__ import annotations

import numpy as np

from offline.calibration.statistics import Floats, LayerEvidence
from offline.criteria.activation import at_least_one


def reap(evidence: LayerEvidence) -> Floats:
    """REAP (arXiv 2510.13999): mean over its tokens of routing weight x |output|_2, [E]."""
    return evidence.seen.weighted_norms / at_least_one(evidence)


def mean_norm(evidence: LayerEvidence) -> Floats:
    """MAN (arXiv 2606.15716): mean over its tokens of |output|_2, [E]."""
    return evidence.seen.norms / at_least_one(evidence)


def mean_squared_norm(evidence: LayerEvidence) -> Floats:
    """MSAN (arXiv 2606.15716): mean over its tokens of |output|_2^2, [E]."""
    return np.asarray(evidence.seen.squares.sum(axis=1) / at_least_one(evidence))


def ean_token_sum(evidence: LayerEvidence) -> Floats:
    """Sum over its tokens of |output|_2, [E]: what some implementations take for EAN."""
    return evidence.seen.norms


def weighted_frequency(evidence: LayerEvidence) -> Floats:
    """Sum over its tokens of the routing weight, [E]."""
    return evidence.seen.weights


def soft_activation(evidence: LayerEvidence) -> Floats:
    """Sum over all tokens, its own or not, of the router score (EEP, appendix A.2), [E]."""
    return evidence.seen.scores
