"""Evidence of one layer, made of random tokens, with those tokens to define criteria by."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from offline.calibration.statistics import (
    WEIGHT_BINS,
    GradientStatistics,
    LayerEvidence,
    LayerStatistics,
    WeightStatistics,
)

Array = NDArray[Any]


@dataclass(frozen=True, slots=True)
class Sample:
    """What happened in one layer, token by token."""

    ids: Array  # [T, k]
    gates: Array  # [T, k]
    scores: Array  # [T, E]
    token_ids: Array  # [T]
    outputs: Array  # [E, T, D] of every expert for every token
    vocab: int

    @property
    def num_experts(self) -> int:
        return len(self.outputs)

    def own(self, expert: int) -> Array:
        """The tokens that were routed to an expert."""
        return np.flatnonzero((self.ids == expert).any(axis=1))

    def activations(self, expert: int) -> Array:
        """A_p, [T_p, D]."""
        return self.outputs[expert, self.own(expert)]

    def weights(self, expert: int) -> Array:
        return self.gates[self.ids == expert]


def sample(
    seed: int = 0,
    *,
    tokens: int = 60,
    experts: int = 6,
    top_k: int = 2,
    hidden: int = 5,
    never: tuple[int, ...] = (),
    once: int | None = None,
) -> Sample:
    """Draw a layer; ``never`` are experts that no token takes, ``once`` is taken by one token."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 1.5, (tokens, experts))
    logits[:, list(never)] = -30
    if once is not None:
        logits[:, once] = -20
        logits[0, once] = 20
    scores = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    ids = np.argsort(-scores, axis=1)[:, :top_k]
    gates = np.take_along_axis(scores, ids, axis=1)
    return Sample(
        ids=ids,
        gates=gates / gates.sum(axis=1, keepdims=True),
        scores=scores,
        token_ids=rng.integers(0, 30, tokens),
        outputs=rng.normal(rng.normal(0, 1, (experts, 1, hidden)), 1, (experts, tokens, hidden)),
        vocab=30,
    )


def evidence_of(layer: Sample, number: int = 0, *, gradients: bool = True) -> LayerEvidence:
    """Sum a sample up as a calibration pass does."""
    every = range(layer.num_experts)
    own = [layer.activations(p) for p in every]
    norms = [np.linalg.norm(a, axis=1) for a in own]
    zero = np.zeros(layer.outputs.shape[2])
    vocabulary = np.zeros((layer.num_experts, layer.vocab), bool)
    for p in every:
        vocabulary[p, layer.token_ids[layer.own(p)]] = True
    pairs = np.array(
        [[len(np.intersect1d(layer.own(p), layer.own(q))) for q in every] for p in every]
    )
    rng = np.random.default_rng(number + 100)
    seen = LayerStatistics(
        tokens=float(len(layer.token_ids)),
        counts=np.array([float(len(a)) for a in own]),
        scores=layer.scores.sum(axis=0),
        weights=np.array([layer.weights(p).sum() for p in every]),
        weight_bins=np.zeros((layer.num_experts, WEIGHT_BINS)),
        logit_gram=np.eye(layer.num_experts),
        pairs=pairs * (1.0 - np.eye(layer.num_experts)),
        vocabulary=vocabulary,
        mean=np.array([a.mean(axis=0) if len(a) else zero for a in own]),
        deviations=np.array([a.var(axis=0) * len(a) if len(a) else zero for a in own]),
        units=np.array([(a / n[:, None]).sum(axis=0) for a, n in zip(own, norms, strict=True)]),
        norms=np.array([n.sum() for n in norms]),
        weighted_norms=np.array([layer.weights(p) @ norms[p] for p in every]),
        outliers=rng.permutation(layer.num_experts).astype(float),
        peaks=np.array([np.abs(a).max(initial=0) for a in own]),
        gradient=gradient(layer.num_experts, number) if gradients else None,
    )
    return LayerEvidence(number, layer.ids.shape[1], seen, weights(layer.num_experts, number))


def weights(experts: int, seed: int = 0) -> WeightStatistics:
    rng = np.random.default_rng(seed)
    return WeightStatistics(cosines(rng, experts), *rng.uniform(1, 2, (4, experts)))


def gradient(experts: int, seed: int = 0) -> GradientStatistics:
    rng = np.random.default_rng(seed + 50)
    entropy, outliers, norm = (
        rng.uniform(-9, -1, experts),
        rng.permutation(experts),
        rng.random(experts),
    )
    return GradientStatistics(cosines(rng, experts), entropy, outliers.astype(float), norm)


def cosines(rng: np.random.Generator, experts: int) -> Array:
    vectors = rng.normal(size=(experts, 12))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors @ vectors.T


def permuted(evidence: LayerEvidence, order: Array) -> LayerEvidence:
    """Number the experts anew: new expert i is old expert ``order[i]``."""
    seen, gradients = evidence.seen, evidence.seen.gradient
    square = {"pairs", "logit_gram", "similarity"}

    def renumbered(part: Any, skip: tuple[str, ...] = ()) -> Any:
        changed = {
            name: getattr(part, name)[np.ix_(order, order)]
            if name in square
            else getattr(part, name)[order]
            for name in part.__dataclass_fields__
            if name not in skip
        }
        return replace(part, **changed)

    moved = renumbered(seen, ("tokens", "gradient"))
    moved = replace(moved, gradient=None if gradients is None else renumbered(gradients))
    return replace(evidence, seen=moved, weights=renumbered(evidence.weights))
