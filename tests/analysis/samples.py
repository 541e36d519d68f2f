"""Made-up tokens that went through one MoE layer, and the statistics of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from offline.calibration.scores import Scores
from offline.calibration.statistics import (
    WEIGHT_BINS,
    LayerEvidence,
    LayerStatistics,
    WeightStatistics,
)
from offline.maps.map_space import Space
from tests.sample_shapes import shape_of
from tests.vllm_moe_prune.bare import BASE
from vllm_moe_prune.fingerprint import BaseFingerprint
from vllm_moe_prune.provenance import DataIdentity, Provenance, sha256_text
from vllm_moe_prune.routing_map import RoutingMap

Array = NDArray[Any]


@dataclass(frozen=True, slots=True)
class Routed:
    """T tokens as one layer of E experts saw them: what the naive definitions look at."""

    vocab: int
    token_ids: Array  # [T]
    logits: Array  # [T, E]
    scores: Array  # [T, E] softmax of the logits
    ids: Array  # [T, k] chosen experts
    weights: Array  # [T, k] renormalised
    outputs: Array  # [T, E, D] of every expert for every token, chosen or not

    def tokens_of(self, expert: int) -> Array:
        """Return the positions [T_p] of the tokens that were routed to an expert."""
        return np.flatnonzero((self.ids == expert).any(axis=1))

    def statistics(self) -> LayerStatistics:
        """Sum up, expert by expert and in plain terms."""
        experts, hidden = self.logits.shape[1], self.outputs.shape[2]
        where = [self.tokens_of(p) for p in range(experts)]
        own = [self.outputs[where[p], p] for p in range(experts)]
        weights = [self.weights[self.ids == p] for p in range(experts)]
        norms = [np.linalg.norm(a, axis=1) for a in own]
        zero = np.zeros(hidden)
        together = [
            [len(np.intersect1d(where[p], where[q])) for q in range(experts)]
            for p in range(experts)
        ]
        vocabulary = np.zeros((experts, self.vocab), bool)
        for p in range(experts):
            vocabulary[p, self.token_ids[where[p]]] = True
        return LayerStatistics(
            tokens=float(len(self.token_ids)),
            counts=np.array([float(len(w)) for w in where]),
            scores=self.scores.sum(axis=0),
            weights=np.array([w.sum() for w in weights]),
            weight_bins=np.stack([histogram(w) for w in weights]),
            logit_gram=self.logits.T @ self.logits,
            pairs=np.array(together, float) * (1 - np.eye(experts)),
            vocabulary=vocabulary,
            mean=np.stack([a.mean(axis=0) if len(a) else zero for a in own]),
            deviations=np.stack([a.var(axis=0) * len(a) if len(a) else zero for a in own]),
            units=np.stack([(a / n[:, None]).sum(axis=0) for a, n in zip(own, norms, strict=True)]),
            norms=np.array([n.sum() for n in norms]),
            weighted_norms=np.array([n @ w for n, w in zip(norms, weights, strict=True)]),
            outliers=np.zeros(experts),
            peaks=np.array([np.abs(a).max(initial=0) for a in own]),
        )


def histogram(weights: Array) -> Array:
    """Count routing weights in the equal parts of 0..1; 1 belongs to the last."""
    counts, _ = np.histogram(weights, bins=WEIGHT_BINS, range=(0, 1))
    return counts.astype(float)


def routed(
    seed: int = 0,
    *,
    tokens: int = 200,
    experts: int = 6,
    top_k: int = 2,
    hidden: int = 5,
    vocab: int = 40,
    never: Sequence[int] = (),
    favour: int | None = None,
) -> Routed:
    """Draw tokens; ``never`` are experts that none takes, ``favour`` is taken by nearly all."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 1.5, (tokens, experts))
    logits[:, list(never)] = -30
    if favour is not None:
        logits[:, favour] += 4
    empty = np.empty(0)
    drawn = Routed(
        vocab=vocab,
        token_ids=rng.integers(0, vocab, tokens),
        logits=logits,
        scores=empty,
        ids=empty,
        weights=empty,
        outputs=rng.normal(rng.normal(0, 1, (experts, hidden)), 1, (tokens, experts, hidden)),
    )
    return route(drawn, logits, top_k)


def weight_statistics(experts: int, seed: int = 0) -> WeightStatistics:
    """Return weights' statistics of random vectors."""
    rng = np.random.default_rng(seed)
    vectors = rng.normal(size=(experts, 12))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    numbers = rng.uniform(1, 2, (4, experts))
    return WeightStatistics(vectors @ vectors.T, *numbers)


def evidence(
    layers: Sequence[int] = (0, 1), *, top_k: int = 2, seed: int = 0, **options: Any
) -> dict[int, LayerEvidence]:
    """Return made-up evidence of some layers; options are those of `routed`."""
    found = {}
    for layer in layers:
        seen = routed(seed + layer, top_k=top_k, **options).statistics()
        weights = weight_statistics(seen.num_experts, seed + layer)
        found[layer] = LayerEvidence(layer, top_k, seen, weights)
    return found


def statistics_of(parts: Mapping[int, Routed]) -> dict[int, LayerStatistics]:
    """Return the statistics of several layers."""
    return {layer: part.statistics() for layer, part in parts.items()}


def route(part: Routed, logits: Array, top_k: int = 2) -> Routed:
    """Send the same tokens to the best ``top_k`` experts of other logits."""
    scores = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    ids = np.argsort(-scores, axis=1)[:, :top_k]
    weights = np.take_along_axis(scores, ids, axis=1)
    weights = weights / weights.sum(axis=1, keepdims=True)
    return replace(part, logits=logits, scores=scores, ids=ids, weights=weights)


def masked(part: Routed, kept: Sequence[int]) -> Routed:
    """Return how the tokens go where a map keeps some experts, under the ids of the base."""
    logits = np.where(np.isin(np.arange(part.logits.shape[1]), kept), part.logits, -50.0)
    return route(part, logits)


def sliced(part: Routed, kept: Sequence[int]) -> Routed:
    """Return how the tokens go in the smaller model, expert j being ``kept[j]`` of the base."""
    ids = list(kept)
    return route(replace(part, outputs=part.outputs[:, ids]), part.logits[:, ids])


def scores_of(
    domains: Mapping[str, Mapping[int, Routed]],
    *,
    top_k: int = 2,
    base: BaseFingerprint = BASE,
    weights: Mapping[int, WeightStatistics] | None = None,
) -> Scores:
    """Return scores of domains of made-up tokens, by decoder layer."""
    found = {name: statistics_of(layers) for name, layers in domains.items()}
    numbers = {n: seen.num_experts for n, seen in next(iter(found.values())).items()}
    data = tuple(
        DataIdentity(name=name, count=1, sha256=sha256_text(f"text of {name}")) for name in domains
    )
    return Scores(
        shape=shape_of(numbers, top_k, base=base),
        domains=found,
        weights=weights or {n: weight_statistics(count, n) for n, count in numbers.items()},
        provenance=Provenance(method="score", data=data),
    )


def two_domains(layers: Sequence[int] = (0, 1, 4), **options: Any) -> dict[str, dict[int, Routed]]:
    """Return the tokens of two domains that favour different experts."""
    return {
        "code": {n: routed(n, favour=1, **options) for n in layers},
        "prose": {n: routed(100 + n, tokens=120, favour=2, **options) for n in layers},
    }


def map_keeping(kept: Mapping[int, Sequence[int]], experts: int = 6) -> RoutingMap:
    """Return the one-hot map of a model of ``experts`` per layer."""
    counts = dict.fromkeys(kept, experts)
    space = Space.of(shape_of(counts))
    return space.routing_map({n: tuple(ids) for n, ids in kept.items()}, Provenance(method="hand"))
