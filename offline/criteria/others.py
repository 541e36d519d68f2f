"""Criteria of other papers, and readings of MC-Suite's that go by a name of their own."""

from __future__ import annotations

import numpy as np

from offline.calibration.statistics import Floats, LayerEvidence


def reap(evidence: LayerEvidence) -> Floats:
    """REAP (arXiv 2510.13999): mean over its tokens of routing weight x |output|_2, [E]."""
    counts = evidence.seen.counts
    return np.asarray(evidence.seen.weighted_norms / np.where(counts > 0, counts, 1.0))


def ean_token_sum(evidence: LayerEvidence) -> Floats:
    """Sum over its tokens of |output|_2, [E]: what some implementations take for EAN."""
    return evidence.seen.norms


def weighted_frequency(evidence: LayerEvidence) -> Floats:
    """Sum over its tokens of the routing weight, [E]."""
    return evidence.seen.weights


def soft_activation(evidence: LayerEvidence) -> Floats:
    """Sum over all tokens, its own or not, of the router score (EEP, appendix A.2), [E]."""
    return evidence.seen.scores
