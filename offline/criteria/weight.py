"""Criteria that look at weights alone (MC-Suite, equations 3 to 6, and AIMER); no text changes
them."""

from __future__ import annotations

import numpy as np

from offline.calibration.statistics import Floats, LayerEvidence
from vllm_moe_prune.errors import PruneError


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


def weight_flatness(evidence: LayerEvidence) -> Floats:
    """AIMER (arXiv 2603.18492): mean |w| over the root mean square of an expert's weights, [E].

    :raises PruneError: if the scores were made before it was measured
    """
    found = evidence.weights.flatness
    if found is None:
        raise PruneError(
            f"layer {evidence.layer}: these scores were made before aimer was measured",
            hint="score again",
        )
    return found


def to_others(similarity: Floats) -> Floats:
    """Sum each row of [E, E] without the expert itself, [E]."""
    others = similarity.copy()
    diagonal = range(len(others))
    others[diagonal, diagonal] = 0  # subtracting it from the sum would leave a rounding error
    return np.asarray(others.sum(axis=1))
