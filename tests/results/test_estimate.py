"""Intervals over documents, and what becomes of them."""

from __future__ import annotations

import numpy as np
import pytest

from offline.results.estimate import FEWEST, Estimate, bootstrap, difference, worst


def mean(total: np.ndarray) -> np.ndarray:
    return np.asarray(total[..., 0] / total[..., 1])


def documents(seed: int, count: int = 60) -> np.ndarray:
    """Return sums of documents of 5 to 60 tokens, each with a mean of its own, about 2."""
    rng = np.random.default_rng(seed)
    tokens = rng.integers(5, 60, count)
    return np.stack([tokens * rng.normal(2.0, 0.5, count), tokens], axis=1).astype(float)


def test_an_interval_holds_the_truth_about_as_often_as_it_says() -> None:
    found = [bootstrap(documents(seed), mean, seed) for seed in range(100)]
    held = sum(one.low <= 2.0 <= one.high for one in found)  # type: ignore[operator]
    assert 87 <= held <= 99


def test_the_same_seed_gives_the_same_interval_whatever_is_held_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    found = bootstrap(documents(1), mean, 5)
    assert bootstrap(documents(1), mean, 5) == found != bootstrap(documents(1), mean, 6)
    monkeypatch.setattr("offline.results.estimate._AT_ONCE", 1000)
    assert bootstrap(documents(1), mean, 5) == found


def test_documents_are_drawn_whole() -> None:
    """Of 40 documents of 1,000 tokens each the interval is that of 40 numbers, not of 40,000."""
    values = np.random.default_rng(0).normal(2.0, 0.5, 40)
    found = bootstrap(np.stack([values * 1000, np.full(40, 1000.0)], axis=1), mean)
    assert found.low is not None and found.high is not None
    assert found.high - found.low == pytest.approx(2 * 1.96 * 0.5 / 40**0.5, rel=0.3)


def test_few_documents_give_no_interval() -> None:
    assert bootstrap(documents(0, FEWEST - 1), mean).low is None
    assert bootstrap(documents(0, FEWEST), mean).low is not None


def test_equal_documents_leave_no_doubt() -> None:
    found = bootstrap(np.ones((20, 2)), mean)
    assert (found.low, found.value, found.high) == (1.0, 1.0, 1.0)


def test_a_difference_of_shares_is_newcombes() -> None:
    """His example (a): 56 of 70 against 48 of 80."""
    one = Estimate(value=56 / 70, low=0.6913, high=0.8777)
    other = Estimate(value=48 / 80, low=0.4904, high=0.7003)
    found = difference(one, other)
    assert found.value == pytest.approx(0.2)
    assert (found.low, found.high) == (
        pytest.approx(0.0524, abs=1e-3),
        pytest.approx(0.3339, abs=1e-3),
    )
    assert difference(one, Estimate(value=0.5)).low is None


def test_the_worst_lies_between_the_greatest_ends() -> None:
    some = [Estimate(value=1.1, low=1.0, high=1.3), Estimate(value=1.2, low=1.15, high=1.25)]
    assert worst(some) == Estimate(value=1.2, low=1.15, high=1.3)
    assert worst([*some, Estimate(value=1.0)]) == Estimate(value=1.2)
