"""Streaming accumulators against the definitions with everything in memory."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from offline.calibration.accumulate import LayerAccumulator
from offline.calibration.outliers import RecordedOutputs
from tests.calibration import naive
from tests.calibration.passes import accumulate, random_pass
from vllm_moe_prune.errors import PruneError


@pytest.mark.parametrize("top_k", [1, 2, 3, 4])
@pytest.mark.parametrize("tokens", [1, 2, 40, 300])
def test_equals_the_definitions(top_k: int, tokens: int) -> None:
    run = random_pass(tokens + top_k, tokens=tokens, top_k=top_k)
    found = accumulate(run, cuts=[tokens // 3, tokens // 2])
    naive.assert_same(found.finish(), naive.layer_statistics(run))


@given(
    seed=st.integers(0, 1000),
    tokens=st.integers(1, 200),
    top_k=st.integers(1, 4),
    cuts=st.lists(st.integers(0, 200), max_size=8),
)
@settings(deadline=None, max_examples=40)
def test_cuts_play_no_part(seed: int, tokens: int, top_k: int, cuts: list[int]) -> None:
    run = random_pass(seed, tokens=tokens, top_k=top_k, hidden=4)
    whole = accumulate(run).finish()
    pieces = accumulate(run, [cut for cut in cuts if cut <= tokens]).finish()
    naive.assert_same(pieces, whole, rtol=1e-9)


def test_experts_with_no_and_one_token() -> None:
    run = random_pass(3, tokens=30, experts=4, top_k=1, skew=0.0)
    ids = np.zeros_like(run.ids)
    ids[7] = 2
    outputs = [np.ones((0, 7), np.float32)] * 4
    rng = np.random.default_rng(0)
    outputs[0] = rng.normal(size=(29, 7)).astype(np.float32)
    outputs[2] = rng.normal(size=(1, 7)).astype(np.float32)
    run = replace(run, ids=ids, outputs=outputs)
    found = accumulate(run, cuts=[5, 7, 8]).finish()
    naive.assert_same(found, naive.layer_statistics(run))
    assert found.counts.tolist() == [29, 0, 1, 0]
    assert not found.mean[[1, 3]].any()
    assert not found.deviations[1:].any()
    assert found.outliers[2] == 0


def test_units_give_the_mean_cosine_of_all_pairs_of_tokens() -> None:
    run = random_pass(4, tokens=25, experts=3, skew=0.2)
    found = accumulate(run, cuts=[9]).finish()
    directions = found.units / found.counts[:, None]
    expected = naive.activation_similarity([o.astype(float) for o in run.outputs])
    np.testing.assert_allclose(directions @ directions.T, expected, rtol=1e-6)


def test_a_large_mean_loses_no_digits() -> None:
    """Sums of squares minus squares of sums would give nothing but noise here."""
    run = random_pass(5, tokens=120, experts=2, top_k=1, skew=0.0)
    rng = np.random.default_rng(1)
    outputs = [(o * 0 + 1e4 + rng.normal(0, 1e-2, o.shape)).astype(np.float32) for o in run.outputs]
    run = replace(run, outputs=outputs)
    found = accumulate(run, cuts=[11, 50]).finish()
    expected = naive.layer_statistics(run)
    np.testing.assert_allclose(found.deviations, expected.deviations, rtol=1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_dtypes_are_taken_as_they_are(dtype: torch.dtype) -> None:
    rows = torch.randn(100, 6, generator=torch.Generator().manual_seed(0)).to(dtype)
    weights = torch.full((100,), 0.5)
    found = LayerAccumulator(1, 6, 3, device="cpu", recorded=RecordedOutputs())
    zeros = torch.zeros(100, 1)
    found.add_routing(zeros[:, 0].long(), zeros, zeros + 1, weights[:, None], zeros.long())
    found.add_outputs(0, rows[:70], weights[:70])
    found.add_outputs(0, rows[70:], weights[70:])
    seen, exact = found.finish(), rows.double().numpy()
    np.testing.assert_allclose(seen.mean[0], exact.mean(axis=0), rtol=1e-9)
    np.testing.assert_allclose(seen.deviations[0] / 100, exact.var(axis=0), rtol=1e-9)
    assert seen.outliers[0] == naive.outliers(exact)
    assert seen.peaks[0] == abs(exact).max()


def test_an_output_of_zero_has_no_direction() -> None:
    found = LayerAccumulator(1, 3, 2, device="cpu", recorded=RecordedOutputs())
    one = torch.ones(2, 1)
    found.add_routing(torch.zeros(2).long(), one, one, one, one.long() * 0)
    found.add_outputs(0, torch.tensor([[0.0, 0, 0], [0, 3, 4]]), torch.ones(2))
    np.testing.assert_allclose(found.finish().units, [[0, 0.6, 0.8]])


def test_weights_beyond_one_count_in_the_last_bin() -> None:
    found = LayerAccumulator(2, 1, 2, device="cpu", recorded=RecordedOutputs())
    logits = torch.zeros(3, 2)
    weights = torch.tensor([[2.5], [1.0], [0.04]])
    ids = torch.tensor([[1], [1], [0]])
    found.add_routing(torch.tensor([0, 1, 1]), logits, logits, weights, ids)
    found.add_outputs(0, torch.ones(1, 1), weights[2])
    found.add_outputs(1, torch.ones(2, 1), weights[:2, 0])
    bins = found.finish().weight_bins
    assert bins[0].tolist() == [1] + [0] * 19
    assert bins[1].tolist() == [0] * 19 + [2]


def test_outputs_must_be_those_of_the_routed_tokens() -> None:
    run = random_pass(6, tokens=10)
    found = accumulate(run)
    found.add_outputs(0, torch.ones(1, 7), torch.ones(1))
    with pytest.raises(AssertionError, match="routed tokens"):
        found.finish()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_refused(bad: float) -> None:
    run = random_pass(7, tokens=10)
    run.outputs[1][0, 3] = bad
    with pytest.raises(PruneError, match="expert 1 gave outputs that are not finite"):
        accumulate(run).finish()
