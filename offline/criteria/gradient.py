"""Criteria that look at the gradient of an expert's weights (MC-Suite, equations 14 to 16)."""

from __future__ import annotations

from offline.calibration.statistics import ExpertEvidence, Floats, GradientStatistics
from offline.criteria.weight import to_others


def gradient_similarity(evidence: ExpertEvidence) -> Floats:
    """EGS: how alike an expert's gradient is to all others', summed cosines, [E]."""
    return to_others(_gradient(evidence).similarity)


def gradient_entropy(evidence: ExpertEvidence) -> Floats:
    """EGE: sum of ln(standard deviation) across the hidden dimension, [E]."""
    return _gradient(evidence).entropy


def gradient_outliers(evidence: ExpertEvidence) -> Floats:
    """EGO: entries outside mean +- 3 standard deviations, [E]."""
    return _gradient(evidence).outliers


def gradient_norm(evidence: ExpertEvidence) -> Floats:
    """EGN: l2 norm, [E]."""
    return _gradient(evidence).norm


def _gradient(evidence: ExpertEvidence) -> GradientStatistics:
    found = evidence.seen.gradient
    assert found is not None, "the registry refuses scores without gradients"
    return found
