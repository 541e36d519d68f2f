"""Streaming accumulators against the definitions with everything in memory."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from offline.calibration import expert_blocks
from offline.calibration.accumulate import LayerAccumulator
from offline.calibration.expert_blocks import ExpertBlocks
from offline.calibration.outliers import RecordedOutputs
from offline.calibration.recorded import RecordedLayer
from offline.calibration.statistics import LayerStatistics
from tests.calibration import naive
from tests.calibration.passes import accumulate, random_pass
from vllm_moe_prune.errors import PruneError


@pytest.mark.parametrize("top_k", [1, 2, 3, 4])
@pytest.mark.parametrize("tokens", [1, 2, 40, 300])
def test_equals_the_definitions(top_k: int, tokens: int) -> None:
    run = random_pass(tokens + top_k, tokens=tokens, top_k=top_k)
    found = accumulate(run, cuts=[tokens // 3, tokens // 2])
    naive.assert_same(found.finish(0), naive.layer_statistics(run))


@given(
    seed=st.integers(0, 1000),
    tokens=st.integers(1, 200),
    top_k=st.integers(1, 4),
    cuts=st.lists(st.integers(0, 200), max_size=8),
)
@settings(deadline=None, max_examples=40)
def test_cuts_play_no_part(seed: int, tokens: int, top_k: int, cuts: list[int]) -> None:
    run = random_pass(seed, tokens=tokens, top_k=top_k, hidden=4)
    whole = accumulate(run).finish(0)
    pieces = accumulate(run, [cut for cut in cuts if cut <= tokens]).finish(0)
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
    found = accumulate(run, cuts=[5, 7, 8]).finish(0)
    naive.assert_same(found, naive.layer_statistics(run))
    assert found.counts.tolist() == [29, 0, 1, 0]
    assert not found.mean[[1, 3]].any()
    assert not found.deviations[1:].any()
    assert found.outliers[2] == 0


def test_units_give_the_mean_cosine_of_all_pairs_of_tokens() -> None:
    run = random_pass(4, tokens=25, experts=3, skew=0.2)
    found = accumulate(run, cuts=[9]).finish(0)
    directions = found.units / found.counts[:, None]
    expected = naive.activation_similarity([o.astype(float) for o in run.outputs])
    np.testing.assert_allclose(directions @ directions.T, expected, rtol=1e-6)


def test_a_large_mean_loses_no_digits() -> None:
    """Sums of squares minus squares of sums would give nothing but noise here."""
    run = random_pass(5, tokens=120, experts=2, top_k=1, skew=0.0)
    rng = np.random.default_rng(1)
    outputs = [(o * 0 + 1e4 + rng.normal(0, 1e-2, o.shape)).astype(np.float32) for o in run.outputs]
    run = replace(run, outputs=outputs)
    found = accumulate(run, cuts=[11, 50]).finish(0)
    expected = naive.layer_statistics(run)
    np.testing.assert_allclose(found.deviations, expected.deviations, rtol=1e-6)


def one_expert(rows: torch.Tensor, cut: int) -> LayerStatistics:
    """Return what rows [T, D] of a single expert show, in two steps, with weights of 1."""
    sums = LayerAccumulator(1, rows.shape[1], 3, device="cpu")
    found = RecordedLayer(sums, RecordedOutputs())
    for part in (rows[:cut], rows[cut:]):
        one = torch.ones(len(part), 1)
        ids = torch.zeros(len(part), 1, dtype=torch.long)
        found.add_routing(ids[:, 0], one, one, one, ids)
        found.add_outputs(ids, part[:, None], one)
    return found.finish(0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_other_dtypes_are_taken_as_they_are(dtype: torch.dtype) -> None:
    rows = torch.randn(300, 6, generator=torch.Generator().manual_seed(0)).to(dtype)
    seen, exact = one_expert(rows, 70), rows.double().numpy()
    rtol = 1e-6 if dtype.itemsize == 2 else 1e-12
    np.testing.assert_allclose(seen.mean[0], exact.mean(axis=0), rtol=rtol)
    np.testing.assert_allclose(seen.deviations[0] / 300, exact.var(axis=0), rtol=rtol)
    assert seen.outliers[0] == naive.outliers(exact)
    assert seen.peaks[0] == abs(exact).max()


def test_an_output_of_zero_has_no_direction() -> None:
    found = one_expert(torch.tensor([[0.0, 0, 0], [0, 3, 4]]), 1)
    np.testing.assert_allclose(found.units, [[0, 0.6, 0.8]])


def test_weights_beyond_one_count_in_the_last_bin() -> None:
    found = LayerAccumulator(2, 1, 2, device="cpu")
    logits = torch.zeros(3, 2)
    weights = torch.tensor([[2.5], [1.0], [0.04]])
    ids = torch.tensor([[1], [1], [0]])
    found.add_routing(torch.tensor([0, 1, 1]), logits, logits, weights, ids)
    bins = found.weight_bins.view(2, -1)
    assert bins[0].tolist() == [1] + [0] * 19
    assert bins[1].tolist() == [0] * 19 + [2]


@given(
    seed=st.integers(0, 1000),
    tokens=st.integers(1, 400),
    top_k=st.integers(1, 4),
    experts=st.integers(4, 9),
    piece=st.sampled_from([1, 1 << 10, 1 << 20]),
)
@settings(deadline=None, max_examples=20)
def test_pieces_play_no_part(seed: int, tokens: int, top_k: int, experts: int, piece: int) -> None:
    run = random_pass(seed, tokens=tokens, top_k=top_k, experts=experts, hidden=4)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(expert_blocks._PIECE, "cpu", piece)
        found = accumulate(run, [tokens // 2]).finish(0)
    naive.assert_same(found, accumulate(run).finish(0), rtol=1e-9)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_16_bit_outputs_are_added_up_in_more(dtype: torch.dtype) -> None:
    run = random_pass(1, tokens=500, experts=3, skew=0.5)
    rounded = [torch.from_numpy(rows).to(dtype).float().numpy() for rows in run.outputs]
    expected = accumulate(replace(run, outputs=rounded)).finish(0)
    naive.assert_same(accumulate(run, [123], dtype=dtype).finish(0), expected, rtol=2e-6)


def test_blocks_hold_every_pair_once_and_those_of_one_expert_each() -> None:
    ids = torch.from_numpy(random_pass(2, tokens=333, experts=6, top_k=3).ids)
    blocks = ExpertBlocks.of(ids, 6)
    assert sorted(blocks.pairs[blocks.real].tolist()) == list(range(333 * 3))
    owners = ids.flatten()[blocks.pairs]
    held = blocks.real[:, 0]
    assert (owners == blocks.experts[:, None])[held].all()  # repeated places too


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_refused(bad: float) -> None:
    run = random_pass(7, tokens=10)
    run.outputs[1][0, 3] = bad
    with pytest.raises(PruneError, match="expert 1 gave outputs that are not finite"):
        accumulate(run).finish(0)
