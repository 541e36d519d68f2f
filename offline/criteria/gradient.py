"""Criteria that look at the gradient of an expert's weights (MC-Suite, equations 14 to 16)."""

from __future__ import annotations

from offline.calibration.statistics import Floats, GradientStatistics, LayerEvidence
from offline.criteria.weight import to_others


def gradient_similarity(evidence: LayerEvidence) -> Floats:
    """EGS: how alike an expert's gradient is to all others', summed cosines, [E]."""
    return to_others(_gradient(evidence).similarity)


def gradient_entropy(evidence: LayerEvidence) -> Floats:
    """EGE: sum of ln(standard deviation) across the hidden dimension, [E]."""
    return _gradient(evidence).entropy


def gradient_outliers(evidence: LayerEvidence) -> Floats:
    """EGO: entries outside mean +- 3 standard deviations, [E]."""
    return _gradient(evidence).outliers


def gradient_norm(evidence: LayerEvidence) -> Floats:
    """EGN: l2 norm, [E]."""
    return _gradient(evidence).norm


def _gradient(evidence: LayerEvidence) -> GradientStatistics:
    found = evidence.seen.gradient
    assert found is not None, "the registry refuses scores without gradients"
    return found
