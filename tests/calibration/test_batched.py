"""The accumulator for all experts at once, against the definitions and the other one."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from offline.calibration import expert_blocks
from offline.calibration.batched import BatchedAccumulator, first_infinite, statistics_of
from offline.calibration.expert_blocks import ExpertBlocks
from offline.calibration.statistics import LayerStatistics
from tests.calibration import naive
from tests.calibration.passes import accumulate, random_pass


def outputs_of(run: naive.Pass) -> torch.Tensor:
    """Return what every token's experts gave, [T, k, D]."""
    found = torch.empty(*run.ids.shape, run.outputs[0].shape[1])
    for expert, rows in enumerate(run.outputs):
        found[torch.from_numpy(run.ids == expert)] = torch.from_numpy(rows)
    return found


def batched(
    run: naive.Pass, cuts: Sequence[int] = (), *, dtype: torch.dtype = torch.float32
) -> LayerStatistics:
    """Feed a pass in steps that end at ``cuts``, then look at all of it once more."""
    outputs = outputs_of(run).to(dtype)
    experts, hidden = run.logits.shape[1], outputs.shape[2]
    found = BatchedAccumulator(experts, hidden, run.vocab, device="cpu")
    edges = [0, *sorted(cuts), len(run.token_ids)]
    parts = [slice(*pair) for pair in itertools.pairwise(edges) if pair[0] < pair[1]]
    blocks = [ExpertBlocks.of(torch.from_numpy(run.ids[part]), experts) for part in parts]
    for part, own in zip(parts, blocks, strict=True):
        seen = (run.token_ids, run.logits, run.scores, run.weights, run.ids)
        routing = [torch.from_numpy(array[part]) for array in seen]
        found.add_routing(*routing)
        found.add_outputs(own, outputs[part], routing[3])
    for part, own in zip(parts, blocks, strict=True):
        found.count_outliers(own, outputs[part])
    return statistics_of({name: array.numpy() for name, array in found.arrays().items()})


@pytest.mark.parametrize("top_k", [1, 4])
@pytest.mark.parametrize("tokens", [1, 40, 300])
def test_equals_the_definitions(top_k: int, tokens: int) -> None:
    run = random_pass(tokens + top_k, tokens=tokens, top_k=top_k)
    naive.assert_same(batched(run, [tokens // 3]), naive.layer_statistics(run))


@given(
    seed=st.integers(0, 1000),
    tokens=st.integers(1, 400),
    top_k=st.integers(1, 4),
    experts=st.integers(4, 9),
    cuts=st.lists(st.integers(0, 400), max_size=4),
    piece=st.sampled_from([1, 1 << 10, 1 << 20]),
)
@settings(deadline=None, max_examples=25)
def test_finds_what_the_other_accumulator_finds(
    seed: int, tokens: int, top_k: int, experts: int, cuts: list[int], piece: int
) -> None:
    """Whatever the steps, the blocks and the pieces in which they are computed."""
    run = random_pass(seed, tokens=tokens, top_k=top_k, experts=experts, hidden=4)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(expert_blocks._PIECE, "cpu", piece)
        found = batched(run, [cut for cut in cuts if cut <= tokens])
    naive.assert_same(found, accumulate(run).finish(), rtol=1e-9)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_16_bit_outputs_are_added_up_in_more(dtype: torch.dtype) -> None:
    run = random_pass(1, tokens=500, experts=3, skew=0.5)
    rounded = [torch.from_numpy(rows).to(dtype).float().numpy() for rows in run.outputs]
    expected = accumulate(replace(run, outputs=rounded)).finish()
    naive.assert_same(batched(run, [123], dtype=dtype), expected, rtol=2e-6)


def test_a_large_mean_loses_no_digits() -> None:
    run = random_pass(5, tokens=120, experts=2, top_k=1, skew=0.0)
    rng = np.random.default_rng(1)
    outputs = [(o * 0 + 1e4 + rng.normal(0, 1e-2, o.shape)).astype(np.float32) for o in run.outputs]
    run = replace(run, outputs=outputs)
    found, expected = batched(run, [50]), naive.layer_statistics(run)
    np.testing.assert_allclose(found.deviations, expected.deviations, rtol=1e-6)


def test_blocks_hold_every_pair_once_and_those_of_one_expert_each() -> None:
    ids = torch.from_numpy(random_pass(2, tokens=333, experts=6, top_k=3).ids)
    blocks = ExpertBlocks.of(ids, 6)
    assert sorted(blocks.pairs[blocks.real > 0].tolist()) == list(range(333 * 3))
    owners = ids.flatten()[blocks.pairs]
    held = blocks.real[:, 0] > 0
    assert (owners == blocks.experts[:, None])[held].all()  # repeated places too


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_of_their_expert(bad: float) -> None:
    run = random_pass(7, tokens=30)
    assert first_infinite(batched(run)) is None
    run.outputs[1][0, 3] = bad
    assert first_infinite(batched(run)) == 1


class Launches(TorchDispatchMode):
    """Counts what would be launched on a GPU, and what would wait for it."""

    WAITS = ("_local_scalar_dense", "nonzero", "is_nonzero", "unique", "masked_select", "bincount")

    def __init__(self) -> None:
        super().__init__()
        self.count = self.waits = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += not func.is_view
        self.waits += any(name in func.name() for name in self.WAITS)
        return func(*args, **(kwargs or {}))


def test_experts_cost_no_launches_and_nothing_waits() -> None:
    counts = set()
    for experts in (8, 128):
        found = BatchedAccumulator(experts, 4, 23, device="cpu")
        ids = torch.rand(100, experts).topk(8).indices
        logits, weights = torch.randn(100, experts), torch.rand(100, 8)
        with Launches() as seen:
            blocks = ExpertBlocks.of(ids, experts)
            found.add_routing(torch.zeros(100).long(), logits, logits, weights, ids)
            found.add_outputs(blocks, torch.randn(100, 8, 4), weights)
            found.count_outliers(blocks, torch.randn(100, 8, 4))
        assert seen.waits == 0
        counts.add(seen.count)
    assert len(counts) == 1 and counts.pop() <= 150
