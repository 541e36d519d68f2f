"""Outlier counts of recorded outputs against the definition, however they came."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from offline.calibration.accumulate import LayerAccumulator
from offline.calibration.expert_blocks import ExpertBlocks
from offline.calibration.outliers import RecordedOutputs
from offline.calibration.recorded import RecordedLayer
from tests.calibration import naive

Draw = Callable[[np.random.Generator, int], np.ndarray]
HIDDEN = 16


def count(experts: Sequence[np.ndarray], chunk: int = 100) -> list[int]:
    """Return the outliers of each expert's rows [n, D], which come in turn, chunk by chunk."""
    data = [torch.from_numpy(rows.astype(np.float32)) for rows in experts]
    sums = LayerAccumulator(len(data), data[0].shape[1], 1, device="cpu")
    with closing(RecordedOutputs()) as recorded:
        layer = RecordedLayer(sums, recorded)
        for begin in range(0, max(map(len, data)), chunk):
            parts = [rows[begin : begin + chunk] for rows in data]
            ids = [torch.full((len(part), 1), expert) for expert, part in enumerate(parts)]
            outputs = torch.cat(parts)[:, None]
            layer.add_outputs(torch.cat(ids), outputs, torch.ones(len(outputs), 1))
        for blocks, outputs in recorded:
            sums.count_outliers(blocks, outputs)
    return sums.outliers.long().tolist()


def correlated(rng: np.random.Generator, count: int) -> np.ndarray:
    """Draw tokens whose mean changes with the text they are of, 100 tokens each."""
    texts = rng.normal(0, 0.5, (count // 100 + 1, HIDDEN))
    return np.repeat(texts, 100, axis=0)[:count] + rng.normal(0, 1, (count, HIDDEN))


def drifting(rng: np.random.Generator, count: int) -> np.ndarray:
    """Draw tokens whose spread shrinks to a hundredth after a tenth of them."""
    rows = rng.normal(0, 1, (count, HIDDEN))
    rows[count // 10 :] *= 0.01
    return rows


DRAWS: dict[str, Draw] = {
    "normal": lambda rng, n: rng.normal(5, 2, (n, HIDDEN)),
    "laplace": lambda rng, n: rng.laplace(0, 1, (n, HIDDEN)),
    "student": lambda rng, n: rng.standard_t(5, (n, HIDDEN)),
    "skewed": lambda rng, n: rng.exponential(1, (n, HIDDEN)),
    "texts": correlated,
    "drift": drifting,
}


@pytest.mark.parametrize("name", DRAWS)
@pytest.mark.parametrize("tokens", [1, 5, 1000, 12000])
def test_counts_exactly(name: str, tokens: int) -> None:
    rows = DRAWS[name](np.random.default_rng(tokens), tokens).astype(np.float32)
    (found,) = count([rows])
    assert found == naive.outliers(rows.astype(float))
    if tokens >= 1000:
        assert found > 0


@given(
    seed=st.integers(0, 10**6),
    sizes=st.lists(st.integers(1, 300), min_size=1, max_size=4),
    chunk=st.integers(1, 300),
    spike=st.sampled_from([0.0, 10.0, 1e4]),
)
@settings(deadline=None, max_examples=30)
def test_experts_are_told_apart_whatever_the_chunks(
    seed: int, sizes: list[int], chunk: int, spike: float
) -> None:
    rng = np.random.default_rng(seed)
    experts = [
        (rng.normal(0, 1, (n, 6)) + spike * (rng.random((n, 6)) < 0.02)).astype(np.float32)
        for n in sizes
    ]
    assert count(experts, chunk) == [naive.outliers(rows.astype(float)) for rows in experts]


@pytest.mark.parametrize("value", [0.0, 0.1, -1e20, 3e-30])
def test_a_constant_dimension_has_no_outliers(value: float) -> None:
    rows = np.full((1000, 3), value, np.float32)
    rows[:, 1] = np.random.default_rng(0).normal(size=1000)
    assert count([rows], 77) == [naive.outliers(rows[:, 1:2].astype(float))]


@pytest.mark.parametrize("tokens", [10, 640])
def test_an_entry_at_a_threshold_is_no_outlier(tokens: int) -> None:
    """One of ten: mean 0.1, deviation 0.3, so 1 is at the mean + 3 deviations."""
    rows = np.zeros((tokens, 1))
    rows[::10] = 1.0
    assert count([rows]) == [0]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_outputs_come_back_bit_for_bit_until_they_are_cleared(
    dtype: torch.dtype, tmp_path: Path
) -> None:
    pieces = [(blocks_of(n), torch.randn(n + 1, 2, 3).to(dtype)) for n in range(4)]
    with closing(RecordedOutputs(tmp_path)) as recorded:
        recorded.add(blocks_of(0), torch.ones(9, 1, 3))
        recorded.clear()
        for blocks, outputs in pieces:
            recorded.add(blocks, outputs.mT.contiguous().mT)
        for _ in range(2):  # as often as asked
            for (blocks, outputs), (same, found) in zip(pieces, recorded, strict=True):
                assert blocks is same
                assert found.dtype == dtype and torch.equal(found, outputs)
        assert list(tmp_path.iterdir()) == []  # the file has no name


def test_where_a_device_has_room_outputs_stay_on_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    outputs = torch.randn(2, 1, 3)
    with closing(RecordedOutputs(tmp_path)) as recorded:
        recorded.add(blocks_of(0), outputs + 1)
        monkeypatch.setattr("offline.calibration.outliers._has_room", lambda _: True)
        recorded.add(blocks_of(1), outputs)
        (_, first), (_, second) = recorded
        assert torch.equal(first, outputs + 1) and second is outputs


def blocks_of(expert: int) -> ExpertBlocks:
    return ExpertBlocks.of(torch.tensor([[expert]]), 4)
