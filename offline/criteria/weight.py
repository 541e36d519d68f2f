"""Criteria that look at weights alone (MC-Suite, equations 3 to 6); no text changes them."""

from __future__ import annotations

import numpy as np

from offline.calibration.statistics import Floats, LayerEvidence


def weight_similarity(evidence: LayerEvidence) -> Floats:
    """EWS: how alike an expert's weights are to all others', summed cosines, [E]."""
    return to_others(evidence.weights.similarity)


def router_norm(evidence: LayerEvidence) -> Floats:
    """RWN: l2 norm of the gate's row, [E]."""
    return evidence.weights.router_norm


def stable_rank(evidence: LayerEvidence) -> Floats:
    """WSR: squared Frobenius norm over squared spectral norm, [E]."""
    return evidence.weights.stable_rank


def weight_norm(evidence: LayerEvidence) -> Floats:
    """EWN: l2 norm of the weights, [E]."""
    return evidence.weights.norm


def to_others(similarity: Floats) -> Floats:
    """Sum each row of [E, E] without the expert itself, [E]."""
    others = similarity.copy()
    diagonal = range(len(others))
    others[diagonal, diagonal] = 0  # subtracting it from the sum would leave a rounding error
    return np.asarray(others.sum(axis=1))
