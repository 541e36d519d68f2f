"""Intervals hold what they say, by numbers from the literature and by drawing."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import binomtest

from offline.results.intervals import doubled, mcnemar, paired_difference, pairs_needed, wilson


@pytest.mark.parametrize(("count", "n"), [(0, 10), (5, 20), (81, 263), (148, 148), (1, 29)])
def test_wilson_is_scipys(count: int, n: int) -> None:
    theirs = binomtest(count, n).proportion_ci(method="wilson")
    assert wilson(count / n, n) == pytest.approx((theirs.low, theirs.high), abs=1e-12)


def test_no_share_has_no_interval() -> None:
    assert all(map(math.isnan, wilson(1.5, 10)))


@pytest.mark.parametrize(("rate", "extra"), [(0.05, 0.0), (0.05, 0.05), (0.5, 0.1), (0.01, 0.03)])
def test_the_paired_interval_holds_the_truth_19_times_in_20(rate: float, extra: float) -> None:
    """Both models share half of what goes wrong, as greedy answers of two alike models do."""
    draw = np.random.default_rng(3)
    shared = rate / 2
    chances = [shared, rate - shared + extra, rate - shared]
    table = draw.multinomial(400, [*chances, 1 - sum(chances)], size=600)
    ends = [paired_difference(*row) for row in table.tolist()]
    held = [low <= extra <= high for low, high in ends]
    assert 0.93 <= np.mean(held) <= 0.995


def test_the_paired_interval_is_narrower_the_more_the_two_agree_and_mirrors() -> None:
    low, high = paired_difference(20, 10, 10, 160)
    apart = paired_difference(5, 25, 25, 145)
    assert high - low < apart[1] - apart[0]
    assert paired_difference(20, 12, 3, 165) == pytest.approx(
        tuple(-x for x in reversed(paired_difference(20, 3, 12, 165)))
    )
    assert paired_difference(0, 0, 0, 50) == pytest.approx((-wilson(0, 50)[1], wilson(0, 50)[1]))


def test_mcnemar_counts_those_that_differ() -> None:
    assert mcnemar(5, 0) == pytest.approx(1 / 32)
    assert mcnemar(8, 2) == pytest.approx(56 / 1024)
    assert mcnemar(3, 3) == mcnemar(0, 0) == mcnemar(1, 9) == 1.0


@pytest.mark.parametrize("rate", [0.02, 0.036, 0.1, 0.6])
@pytest.mark.parametrize("level", [0.025, 0.001])
def test_so_many_pairs_show_a_doubling_8_times_in_10(rate: float, level: float) -> None:
    needed = pairs_needed(rate, level)
    assert needed is not None
    draw, worse = np.random.default_rng(1), doubled(rate)
    more = [worse * (1 - rate), rate * (1 - worse)]
    table = draw.multinomial(needed, [*more, 1 - sum(more)], size=300)
    power = np.mean([mcnemar(int(b), int(c)) <= level for b, c, _ in table])
    assert 0.68 <= power <= 0.9  # the exact test is a little weaker than the formula


def test_what_is_reported_of_pruned_models_needs_hundreds() -> None:
    assert pairs_needed(0.036, 0.025) == 621  # 7.2 % against 3.6 %: unseen with 50 prompts
    assert pairs_needed(1.0, 0.025) is None
    assert (doubled(0.1), doubled(0.5), doubled(0.9)) == (0.2, 0.75, 0.95)
