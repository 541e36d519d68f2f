"""The mathematics of routing against a naive loop in double precision."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from vllm_moe_prune.layout import Score
from vllm_moe_prune.routing import renormalised, route, scores

Doubles = NDArray[np.float64]
FAST = settings(max_examples=25, deadline=None)


def naive(
    logits: Doubles, w_rm: Doubles, top_k: int, score: Score, renormalise: bool
) -> tuple[list[list[float]], list[list[int]]]:
    """Scores, map, top-k, renormalisation, one number at a time."""
    weights, ids = [], []
    for row in logits:
        powers = [math.exp(x - max(row)) for x in row]
        softmax = [power / sum(powers) for power in powers]
        given_scores = softmax if score == "softmax" else [1 / (1 + math.exp(-x)) for x in row]
        mapped = [
            sum(c * s for c, s in zip(line, given_scores, strict=True)) for line in w_rm.tolist()
        ]
        best = sorted(range(len(mapped)), key=lambda j: -mapped[j])[:top_k]
        total = sum(mapped[j] for j in best) if renormalise else 1.0
        weights.append([mapped[j] / total for j in best])
        ids.append(best)
    return weights, ids


@st.composite
def routings(draw: st.DrawFn, *, one_hot: bool = False) -> tuple[Doubles, Doubles, int, list[int]]:
    """Logits [T, E], W_RM [E', E], top-k and the kept experts (for a one-hot W_RM)."""
    experts = draw(st.integers(2, 9))
    kept = draw(st.permutations(range(experts)))[: draw(st.integers(1, experts))]
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    logits = rng.normal(0, 2, (5, experts)).astype(np.float32).astype(np.float64)
    w_rm = np.eye(experts)[kept]
    if not one_hot:
        w_rm = (w_rm + rng.random((len(kept), experts))).astype(np.float32).astype(np.float64)
    return logits, w_rm, draw(st.integers(1, len(kept))), list(kept)


def our_route(logits: Doubles, w_rm: Doubles, top_k: int, **how: Any) -> tuple[Doubles, Any]:
    given_map = torch.tensor(w_rm, dtype=torch.float32)
    weights, ids = route(torch.tensor(logits, dtype=torch.float32), given_map, top_k, **how)
    assert weights.dtype == torch.float32
    return weights.double().numpy(), ids.tolist()


@FAST
@given(routings(), st.sampled_from(["softmax", "sigmoid"]), st.booleans())
def test_route_equals_the_naive_loop(
    routing: tuple[Doubles, Doubles, int, list[int]], score: Score, renormalise: bool
) -> None:
    logits, w_rm, top_k, _ = routing
    expected, expected_ids = naive(logits, w_rm, top_k, score, renormalise)
    weights, ids = our_route(logits, w_rm, top_k, score=score, renormalise=renormalise)
    assert np.allclose(weights, expected, rtol=0, atol=2e-6)
    gaps = -np.diff(np.sort(expected, axis=1)[:, ::-1], axis=1)
    assume((gaps > 1e-5).all())  # two scores that float32 cannot tell apart may come either way
    assert [row[:-1] for row in ids] == [row[:-1] for row in expected_ids]


@FAST
@given(routings(one_hot=True))
def test_with_renormalisation_a_one_hot_map_equals_sliced_gate_rows(
    routing: tuple[Doubles, Doubles, int, list[int]],
) -> None:
    logits, w_rm, top_k, kept = routing
    mapped, mapped_ids = our_route(logits, w_rm, top_k, score="softmax", renormalise=True)
    sliced, sliced_ids = our_route(
        logits[:, kept], np.eye(len(kept)), top_k, score="softmax", renormalise=True
    )
    assert mapped_ids == sliced_ids
    assert np.allclose(mapped, sliced, rtol=0, atol=1e-6)
    assert np.allclose(mapped.sum(axis=1), 1, atol=1e-6)


@FAST
@given(routings(one_hot=True))
def test_without_renormalisation_they_differ_by_exactly_the_dropped_probability(
    routing: tuple[Doubles, Doubles, int, list[int]],
) -> None:
    logits, w_rm, top_k, kept = routing
    mapped, _ = our_route(logits, w_rm, top_k, score="softmax", renormalise=False)
    sliced, _ = our_route(
        logits[:, kept], np.eye(len(kept)), top_k, score="softmax", renormalise=False
    )
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    kept_mass = probabilities[:, kept].sum(axis=1, keepdims=True)
    assert np.allclose(mapped, sliced * kept_mass, rtol=0, atol=1e-6)


def test_a_dropped_expert_never_takes_a_place_among_the_top_k() -> None:
    logits = np.array([[9.0, 8.0, 1.0, 0.0]])  # the two best experts are dropped
    weights, ids = our_route(logits, np.eye(4)[[2, 3]], 2, score="softmax", renormalise=True)
    assert ids == [[0, 1]]
    assert weights[0].tolist() == pytest.approx([0.7310586, 0.2689414], abs=1e-6)


def test_the_map_acts_after_the_softmax() -> None:
    w_rm = np.array([[0.5, 0.5, 0.0], [0.0, 0.0, 1.0]])
    logits = np.log([[0.2, 0.6, 0.2]])
    weights, ids = our_route(logits, w_rm, 2, score="softmax", renormalise=False)
    assert ids == [[0, 1]]
    assert weights[0].tolist() == pytest.approx([0.4, 0.2], abs=1e-6)


def test_scores_are_float32_whatever_the_logits_are() -> None:
    logits = torch.tensor([[0.0, 1.0]], dtype=torch.bfloat16)
    assert scores(logits, "sigmoid").tolist()[0] == pytest.approx([0.5, 0.7310586], abs=1e-6)
    assert scores(logits, "softmax").dtype == torch.float32


@FAST
@given(st.lists(st.floats(2.0**-20, 1.0, width=32), min_size=1, max_size=6))
def test_the_guard_changes_nothing_for_positive_weights(values: list[float]) -> None:
    weights = torch.tensor([values])
    assert torch.equal(renormalised(weights), weights / weights.sum(dim=-1, keepdim=True))


@FAST
@given(st.lists(st.floats(-1.0, 1.0, width=32), min_size=1, max_size=6))
def test_weights_that_cancel_out_stay_finite_and_bounded(values: list[float]) -> None:
    result = renormalised(torch.tensor([values]))
    assert torch.isfinite(result).all()
    assert float(result.abs().sum()) <= 20.0 * (1 + 1e-5)  # 1 / the least share of 0.05


def test_weights_that_sum_to_zero_keep_their_signs() -> None:
    result = renormalised(torch.tensor([[0.5, -0.5], [0.0, 0.0]]))
    assert result.tolist() == [pytest.approx([10.0, -10.0]), [0.0, 0.0]]


def test_weights_that_are_all_negative_sum_to_one_as_in_the_released_code() -> None:
    result = renormalised(torch.tensor([[-0.1, -0.3]]))
    assert result.tolist() == [pytest.approx([0.25, 0.75])]
