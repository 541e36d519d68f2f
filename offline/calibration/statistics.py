"""What calibration leaves behind: sums per layer and expert from which all criteria follow.

Notation of MC-Suite (arXiv 2504.05586, section 2): T tokens enter a layer of E experts, each takes
k of them; A_p [T_p, D] are the outputs of expert p, without the gate's weight, for the tokens
routed to it. Everything is numpy in float64, so that planning needs no torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

WEIGHT_BINS = 20  # of the histograms of routing weights, over 0..1


@dataclass(frozen=True, slots=True)
class GradientStatistics:
    """Of the gradient W_p^g of the next-token cross-entropy, summed over a domain's tokens."""

    similarity: Floats  # [E, E] cosine of the flattened gradients (eq 14)
    entropy: Floats  # [E] sum of log standard deviations across the hidden dimension (eq 15)
    outliers: Floats  # [E] entries outside mean +- 3 standard deviations
    norm: Floats  # [E] l2 norm (eq 16)


@dataclass(frozen=True, slots=True)
class LayerStatistics:
    """What the tokens of one domain showed of one layer.

    Counts are kept as float64, exact up to 2^53, so that blends of domains are of the same type.
    ``outliers`` is against the mean and deviation of this very domain.
    """

    tokens: float  # T
    counts: Floats  # [E] T_p, tokens routed to each expert; sums to T k (eq 7)
    scores: Floats  # [E] router scores, summed over all T tokens (EEP's Soft Activation)
    weights: Floats  # [E] routing weights, summed over the tokens routed to each expert
    weight_bins: Floats  # [E, WEIGHT_BINS] how many of these weights lie in each part of 0..1
    logit_gram: Floats  # [E, E] sum over tokens of the products of router logits (M-SMoE)
    pairs: Floats  # [E, E] tokens routed to both experts, zero on the diagonal (eq 8)
    vocabulary: NDArray[np.bool_]  # [E, V] token ids that each expert saw (eq 9, 10)
    mean: Floats  # [E, D] mean of A_p over its tokens
    deviations: Floats  # [E, D] sum over tokens of (A_p - mean)^2
    units: Floats  # [E, D] sum over tokens of a / |a| (eq 11)
    norms: Floats  # [E] sum over tokens of |a|_2
    weighted_norms: Floats  # [E] sum over tokens of routing weight x |a|_2 (REAP)
    outliers: Floats  # [E] entries of A_p outside mean +- 3 standard deviations of their dimension
    peaks: Floats  # [E] greatest |entry| of A_p
    gradient: GradientStatistics | None = None

    @property
    def num_experts(self) -> int:
        """E."""
        return len(self.counts)

    @property
    def squares(self) -> Floats:
        """Return the sum over tokens of A_p^2, [E, D]."""
        return self.deviations + self.counts[:, None] * self.mean**2


@dataclass(frozen=True, slots=True)
class WeightStatistics:
    """What one layer's weights show, whatever the text; W_p is all of expert p's projections."""

    similarity: Floats  # [E, E] cosine of the flattened weights (eq 3)
    router_norm: Floats  # [E] l2 norm of each gate row (eq 4)
    stable_rank: Floats  # [E] mean over the projections of |W|_F^2 / |W|_2^2 (eq 5)
    norm: Floats  # [E] l2 norm (eq 6)
    flatness: Floats | None = None  # [E] mean |w| / rms(w) (AIMER); None in scores before it


@dataclass(frozen=True, slots=True)
class LayerEvidence:
    """All that a criterion may look at in one layer."""

    layer: int
    top_k: int
    seen: LayerStatistics
    weights: WeightStatistics


Evidence = Mapping[int, LayerEvidence]  # decoder layer -> what criteria look at


def mean_outputs(evidence: Evidence) -> dict[int, NDArray[np.float32]]:
    """Return decoder layer -> the mean output [E, D] of each expert over the tokens routed to it.

    It is what stands for a substituted expert, and 0 of experts that saw no token.
    """
    return {layer: one.seen.mean.astype(np.float32) for layer, one in evidence.items()}
