"""Criteria that look at which tokens an expert gets (MC-Suite, equations 7 to 10)."""

from __future__ import annotations

import numpy as np

from offline.calibration.statistics import Floats, LayerEvidence


def usage(evidence: LayerEvidence) -> Floats:
    """EUF: tokens routed to the expert, [E]."""
    return evidence.seen.counts


def collaboration(evidence: LayerEvidence) -> Floats:
    """ECC: tokens routed to both experts of a pair, [E, E]."""
    return evidence.seen.pairs


def vocabulary_coverage(evidence: LayerEvidence) -> Floats:
    """EVTC: share of the vocabulary that the expert saw, [E]."""
    return np.asarray(evidence.seen.vocabulary.mean(axis=1, dtype=np.float64))


def token_similarity(evidence: LayerEvidence) -> Floats:
    """ETS: token ids that both experts of a pair saw, [E, E].

    Ids, not positions: of top-2 routing the positions that two experts share are those of ECC.
    """
    ids = evidence.seen.vocabulary.astype(np.float32)  # sums of ones: exact up to 2^24 ids
    return (ids @ ids.T).astype(np.float64)
