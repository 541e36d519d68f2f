"""Arrivals of an open loop and the users of a closed one."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from pydantic import ValidationError

from loadtest.load import Load, Stage, steady


def test_constant_arrivals_are_even() -> None:
    assert list(steady(4, 2, "constant").due(0)) == pytest.approx([0.25 * k for k in range(8)])


def test_a_ramp_has_as_many_arrivals_as_its_mean_rate_says_and_they_come_closer() -> None:
    load = Load(arrivals="constant", stages=(Stage(seconds=10, rate=0, to=20),))
    due = list(load.due(0))
    assert len(due) == 100
    gaps = [b - a for a, b in pairwise(due)]
    assert gaps == sorted(gaps, reverse=True)
    assert gaps[-1] == pytest.approx(1 / 20, rel=0.02)


def test_a_spike_lies_where_its_stage_does() -> None:
    stages = (Stage(seconds=5, rate=1), Stage(seconds=1, rate=50), Stage(seconds=4, rate=1))
    due = np.array(list(Load(arrivals="constant", stages=stages).due(0)))
    assert ((due >= 5) & (due < 6)).sum() == 50
    assert len(due) == 59 and due.max() < 10


def test_poisson_gaps_are_exponential_and_the_seed_s() -> None:
    due = list(steady(100, 50).due(1))
    assert due == list(steady(100, 50).due(1)) != list(steady(100, 50).due(2))
    gaps = np.diff(due)
    assert len(due) == pytest.approx(5000, rel=0.05)
    assert np.mean(gaps) == pytest.approx(0.01, rel=0.05)
    assert np.std(gaps) == pytest.approx(0.01, rel=0.07)  # as large as the mean: no clock


def test_users_of_a_closed_loop_follow_their_stages() -> None:
    load = Load(stages=(Stage(seconds=10, users=0, to=20), Stage(seconds=5, users=8)))
    assert [load.users_at(t) for t in (0, 5, 9.99, 10, 14.9)] == [0, 10, 20, 8, 8]
    assert load.users_at(15) is None


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"arrivals": "poisson"}, "need stages"),
        ({"arrivals": "poisson", "stages": [{"seconds": 1, "users": 3}]}, "stage 1"),
        ({"stages": [{"seconds": 1, "rate": 3}]}, "stage 1"),
        ({"stages": [{"seconds": 0, "users": 3}]}, "greater than 0"),
    ],
)
def test_what_does_not_go_together_is_refused(fields: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        Load.model_validate(fields)
