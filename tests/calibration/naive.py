"""Definitions of all statistics with everything in memory, as plain loops in float64.

They follow MC-Suite (arXiv 2504.05586, section 2) equation by equation; what a streaming pass
found is compared with these.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from offline.calibration.statistics import (
    WEIGHT_BINS,
    GradientStatistics,
    LayerStatistics,
    WeightStatistics,
)

Array = NDArray[Any]


@dataclass(frozen=True, slots=True)
class Pass:
    """All that went through one layer: T tokens, E experts, k of them each, V token ids."""

    vocab: int
    token_ids: Array  # [T]
    logits: Array  # [T, E]
    scores: Array  # [T, E]
    weights: Array  # [T, k]
    ids: Array  # [T, k]
    outputs: Sequence[Array]  # of each expert, [T_p, D], in the order of its tokens


def layer_statistics(run: Pass) -> LayerStatistics:
    """Return what `LayerAccumulator` must find."""
    num_tokens, num_experts = run.logits.shape
    counts, weights = np.zeros(num_experts), np.zeros(num_experts)
    bins = np.zeros((num_experts, WEIGHT_BINS))
    pairs = np.zeros((num_experts, num_experts))
    vocabulary = np.zeros((num_experts, run.vocab), bool)
    given: list[list[float]] = [[] for _ in range(num_experts)]  # weights of each expert's tokens
    for token in range(num_tokens):
        for expert, weight in zip(run.ids[token], run.weights[token].astype(float), strict=True):
            counts[expert] += 1
            weights[expert] += weight
            bins[expert, min(int(weight * WEIGHT_BINS), WEIGHT_BINS - 1)] += 1
            vocabulary[expert, run.token_ids[token]] = True
            given[expert].append(weight)
        for one, other in itertools.permutations(run.ids[token], 2):
            pairs[one, other] += 1
    logits = run.logits.astype(float)
    rows = [np.asarray(outputs, float) for outputs in run.outputs]
    return LayerStatistics(
        tokens=float(num_tokens),
        counts=counts,
        scores=run.scores.astype(float).sum(axis=0),
        weights=weights,
        weight_bins=bins,
        logit_gram=np.array([[a @ b for b in logits.T] for a in logits.T]),
        pairs=pairs,
        vocabulary=vocabulary,
        mean=np.array([[mean(column) for column in part.T] for part in rows]),
        deviations=np.array(
            [[math.fsum((column - mean(column)) ** 2) for column in part.T] for part in rows]
        ),
        units=np.array([sum((unit(a) for a in part), np.zeros(part.shape[1])) for part in rows]),
        norms=np.array([math.fsum(length(a) for a in part) for part in rows]),
        weighted_norms=np.array(
            [
                math.fsum(w * length(a) for w, a in zip(some, part, strict=True))
                for some, part in zip(given, rows, strict=True)
            ]
        ),
        outliers=np.array([float(outliers(part)) for part in rows]),
        peaks=np.array([max((abs(x) for x in part.flat), default=0.0) for part in rows]),
    )


def mean(values: Array) -> float:
    return math.fsum(values) / len(values) if len(values) else 0.0


def deviation(values: Array) -> float:
    middle = mean(values)
    return math.sqrt(math.fsum((values - middle) ** 2) / len(values)) if len(values) else 0.0


def length(values: Array) -> float:
    return math.sqrt(math.fsum(x * x for x in values.flat))


def unit(values: Array) -> Array:
    return values / length(values) if length(values) else np.zeros_like(values)


def outliers(rows: Array) -> int:
    """Count entries of [n, D] outside mean +- 3 deviations of their column (EAO, EGO)."""
    found = 0
    for column in rows.T:
        middle, sigma = mean(column), deviation(column)
        if sigma <= 1e-12 * abs(middle):  # constant but for rounding
            continue
        found += sum(abs(x - middle) > 3 * sigma * (1 + 1e-9) for x in column)
    return found


def activation_similarity(outputs: Sequence[Array]) -> Array:
    """Return mean cosines over all pairs of tokens of two experts, [E, E] (eq 11)."""
    return np.array(
        [[np.mean([unit(a) @ unit(b) for a in one for b in two]) for two in outputs]
         for one in outputs]
    )  # fmt: skip


def weight_statistics(gate: Array, experts: Sequence[Sequence[Array]]) -> WeightStatistics:
    ranks = []
    for expert in experts:
        singular = [np.linalg.svd(np.asarray(w, float), compute_uv=False) for w in expert]
        ranks.append(float(np.mean([(s**2).sum() / s[0] ** 2 for s in singular])))
    return WeightStatistics(
        similarity=cosines(experts),
        router_norm=np.array([length(row) for row in np.asarray(gate, float)]),
        stable_rank=np.array(ranks),
        norm=np.array([length(flat(expert)) for expert in experts]),
        flatness=np.array([flatness(flat(expert)) for expert in experts]),
    )


def flatness(values: Array) -> float:
    """Return the mean of the magnitudes by the root of the mean square."""
    numbers = values.astype(float).tolist()
    root = math.sqrt(sum(value**2 for value in numbers) / len(numbers))
    return sum(map(abs, numbers)) / len(numbers) / root


def gradient_statistics(experts: Sequence[Sequence[Array]]) -> GradientStatistics:
    return GradientStatistics(
        similarity=cosines(experts),
        entropy=np.array(
            [
                sum(math.log(max(deviation(c), 1e-8)) for w in expert for c in w.astype(float).T)
                for expert in experts
            ]
        ),
        outliers=np.array(
            [float(sum(outliers(w.astype(float)) for w in expert)) for expert in experts]
        ),
        norm=np.array([length(flat(expert)) for expert in experts]),
    )


def flat(expert: Sequence[Array]) -> Array:
    return np.concatenate([np.asarray(w, float).ravel() for w in expert])


def cosines(experts: Sequence[Sequence[Array]]) -> Array:
    return np.array([[unit(flat(a)) @ unit(flat(b)) for b in experts] for a in experts])


def assert_same(found: Any, expected: Any, *, rtol: float = 1e-6, atol: float = 1e-12) -> None:
    """Compare two objects of statistics.py field by field; ``atol`` is relative to the largest."""
    for field in fields(expected):
        ours, theirs = getattr(found, field.name), getattr(expected, field.name)
        if theirs is None or ours is None:
            assert ours is theirs, field.name
        elif field.name == "gradient":
            assert_same(ours, theirs, rtol=rtol, atol=atol)
        else:
            assert np.shape(ours) == np.shape(theirs), field.name
            scale = atol * max(float(np.abs(theirs).max()), 1.0)
            np.testing.assert_allclose(ours, theirs, rtol, scale, err_msg=field.name)
