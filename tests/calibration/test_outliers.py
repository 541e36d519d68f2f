"""Outlier counts of one pass against those of two, and what is kept for them."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from offline.calibration.outliers import FIRST, OutlierCounter
from tests.calibration import naive

Draw = Callable[[np.random.Generator, int], np.ndarray]
HIDDEN = 16


def stream(rows: np.ndarray, chunk: int = 100) -> tuple[OutlierCounter, int, int]:
    """Return the counter, the outliers it found, and how many dimensions are inexact."""
    data = torch.from_numpy(rows.astype(np.float32))
    exact = data.double()
    counter = OutlierCounter(rows.shape[1])
    done, mean, deviations = 0, exact.new_zeros(rows.shape[1]), exact.new_zeros(rows.shape[1])
    while done < len(rows):
        size = min(chunk, counter.until_renewal, len(rows) - done)
        so_far = exact[: done + size]
        mean = so_far.mean(dim=0)
        deviations = (so_far - mean).square().sum(dim=0)
        counter.add(data[done : done + size], mean, deviations)
        done += size
    return counter, *counter.count(mean, deviations)


def correlated(rng: np.random.Generator, count: int) -> np.ndarray:
    """Draw tokens whose mean changes with the text they are of, 100 tokens each."""
    texts = rng.normal(0, 0.5, (count // 100 + 1, HIDDEN))
    return np.repeat(texts, 100, axis=0)[:count] + rng.normal(0, 1, (count, HIDDEN))


STATIONARY: dict[str, Draw] = {
    "normal": lambda rng, n: rng.normal(5, 2, (n, HIDDEN)),
    "laplace": lambda rng, n: rng.laplace(0, 1, (n, HIDDEN)),
    "student": lambda rng, n: rng.standard_t(5, (n, HIDDEN)),
    "skewed": lambda rng, n: rng.exponential(1, (n, HIDDEN)),
    "texts": correlated,
}


@pytest.mark.parametrize("name", STATIONARY)
@pytest.mark.parametrize("count", [1, 5, FIRST - 1, FIRST, FIRST + 1, 2 * FIRST, 1000, 12000])
def test_counts_exactly(name: str, count: int) -> None:
    rows = STATIONARY[name](np.random.default_rng(count), count).astype(np.float32)
    _, found, inexact = stream(rows)
    assert inexact == 0
    assert found == naive.outliers(rows.astype(float))
    assert count < 1000 or found > 0


@given(
    seed=st.integers(0, 10**6),
    count=st.integers(1, 500),
    chunk=st.integers(1, 300),
    spike=st.sampled_from([0.0, 10.0, 1e4]),
)
@settings(deadline=None, max_examples=30)
def test_is_exact_or_says_that_it_is_not(seed: int, count: int, chunk: int, spike: float) -> None:
    """Rare huge values, as of attention sinks, move thresholds as much as anything can."""
    rng = np.random.default_rng(seed)
    rows = rng.normal(0, 1, (count, 6)) + spike * (rng.random((count, 6)) < 0.02)
    rows = rows.astype(np.float32)
    _, found, inexact = stream(rows, chunk)
    expected = naive.outliers(rows.astype(float))
    assert found == expected or inexact > 0
    assert stream(rows, 1)[1:] == (found, inexact)


def test_rare_huge_values_are_counted_exactly() -> None:
    """The first of them comes long after the bands were laid."""
    rows = np.random.default_rng(0).normal(0, 1, (5000, HIDDEN))
    rows[700::512, 3] = 1000.0
    _, found, inexact = stream(rows)
    assert (found, inexact) == (naive.outliers(rows.astype(np.float32).astype(float)), 0)


@pytest.mark.parametrize("tail", [8.0, -8.0])
def test_drift_is_reported(tail: float) -> None:
    """After 2000 quiet tokens the spread shrinks: what was dropped would now be an outlier."""
    rng = np.random.default_rng(1)
    rows = rng.normal(0, 1, (60_000, HIDDEN))
    rows[:2000, 0] = tail * rng.random(2000)
    rows[2000:, 0] *= 0.01
    _, found, inexact = stream(rows, 5000)
    assert inexact == 1
    assert found < naive.outliers(rows.astype(np.float32).astype(float))


def test_drift_beyond_what_was_merely_counted_is_reported() -> None:
    """Counted as outliers when the spread was small, they no longer are at the end."""
    rng = np.random.default_rng(2)
    rows = rng.normal(0, 1, (100_000, 2))
    rows[80_000:, 0] *= 30
    counter, found, inexact = stream(rows, 5000)
    assert inexact == 1
    assert found > naive.outliers(rows.astype(np.float32).astype(float))
    assert counter.kept_entries < 0.1 * rows.size


@pytest.mark.parametrize("value", [0.0, 0.1, -1e20, 3e-30])
def test_a_constant_dimension_has_no_outliers(value: float) -> None:
    rows = np.full((1000, 3), value, np.float32)
    rows[:, 1] = np.random.default_rng(0).normal(size=1000)
    counter, found, inexact = stream(rows, 77)
    assert (found, inexact) == (naive.outliers(rows[:, 1:2].astype(float)), 0)
    assert counter.kept_entries < 500


@pytest.mark.parametrize("count", [10, 640])
def test_an_entry_at_a_threshold_is_no_outlier(count: int) -> None:
    """One of ten: mean 0.1, deviation 0.3, so 1 is at the mean + 3 deviations."""
    rows = np.zeros((count, 1))
    rows[::10] = 1.0
    assert stream(rows)[1] == 0


@pytest.mark.parametrize("name", ["normal", "student"])
def test_what_is_kept_grows_much_slower_than_tokens(name: str) -> None:
    tokens = (25_000, 50_000, 100_000, 200_000)
    rows = STATIONARY[name](np.random.default_rng(0), tokens[-1])
    kept = [stream(rows[:count], 10_000)[0].kept_entries for count in tokens]
    assert kept[-1] < 0.01 * rows.size
    assert kept[-1] / kept[0] < 4  # of 8 times the tokens
