"""Racing: how often it is wrong, exactly and by simulation, and what it saves."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.stats import multivariate_hypergeom

from offline.fitness.racing import Race, RacingSettings

Array = NDArray[np.float64]


def race(
    reference: Array, *, slack: float = 0.0, alpha: float = 0.05, bounded: bool = True
) -> Race:
    return Race(
        RacingSettings(slack=slack, alpha=alpha),
        {"t": reference.tolist()},
        float(reference.mean()),
        {"t": 1.0},
        bounded,
    )


def stops_at(candidate: Array, against: Race) -> int:
    """Return the number of items after which the candidate is dropped; all if it is not."""
    for end in against.ends()[:-1]:
        if against.is_hopeless({"t": candidate[: end["t"]].tolist()}):
            return end["t"]
    return len(candidate)


def pair(size: int, reference: float, gap: float, ups: float) -> tuple[Array, Array]:
    """Return 0/1 items of a reference and of a candidate that is ``gap`` worse.

    :param ups: share of items that only the candidate has right
    """
    right, up = round(size * reference), round(size * ups)
    down = up + round(size * gap)
    one = np.concatenate([np.ones(right), np.zeros(size - right)])
    other = one.copy()
    other[:down] = 0
    other[size - up :] = 1
    return one, other


def dropped(one: Array, other: Array, times: int, **options: float | bool) -> tuple[float, float]:
    """Return how often the candidate is dropped and the share of items seen, over shuffles."""
    rng = np.random.default_rng(5)
    seen = []
    for _ in range(times):
        order = rng.permutation(len(one))
        seen.append(stops_at(other[order], race(one[order], **options)))  # type: ignore[arg-type]
    return float(np.mean(np.asarray(seen) < len(one))), float(np.mean(seen)) / len(one)


@pytest.mark.parametrize(
    ("reference", "slack", "ups"),
    [(0.5, 0.0, 0.05), (0.7, 0.0, 0.2), (0.9, 0.0, 0.02), (0.7, 0.03, 0.1), (0.9, 0.03, 0.08)],
)
def test_the_false_drop_rate_is_at_most_alpha(reference: float, slack: float, ups: float) -> None:
    """The candidate is exactly as good as just good enough: the hardest case."""
    rate, _ = dropped(*pair(200, reference, slack, ups), 400, slack=slack)
    assert rate <= 0.05


def region(size: int, seen: int, slack: float) -> Callable[[int, int], bool]:
    """Return whether a candidate with so many items up and so many down is dropped by the test."""
    end = {"t": seen}
    against = race(np.full(size, 0.5), slack=slack, bounded=False)  # no certain drops
    assert end in against.ends()

    def is_dropped(up: int, down: int) -> bool:
        values = [1.5] * up + [-0.5] * down + [0.5] * (seen - up - down)
        return against.is_hopeless({"t": values})

    return is_dropped


@pytest.mark.parametrize("slack", [0.0, 0.03])
@pytest.mark.parametrize("seen", [16, 32, 64])
def test_no_look_exceeds_its_share_of_alpha_exactly(seen: int, slack: float) -> None:
    """By enumeration of all samples, for every number of items that may differ."""
    size, share = 128, 0.05 / 3
    is_dropped = region(size, seen, slack)
    lost = [
        (up, down)
        for up in range(seen + 1)
        for down in range(up, seen - up + 1)
        if is_dropped(up, down)
    ]
    assert lost
    counts = np.asarray([(up, down, seen - up - down) for up, down in lost])
    worse = math.floor(slack * size)
    rates = [
        multivariate_hypergeom.pmf(counts, [up, up + worse, size - 2 * up - worse], seen).sum()
        for up in range((size - worse) // 2 + 1)
    ]
    assert 0.1 * share < max(rates) <= share


@pytest.mark.parametrize(("gap", "least"), [(0.1, 0.3), (0.2, 0.9), (0.4, 0.99)])
def test_hopeless_candidates_are_dropped_and_early(gap: float, least: float) -> None:
    rate, seen = dropped(*pair(200, 0.8, gap, 0.05), 200, slack=0.03)
    assert rate >= least
    assert seen < {0.1: 0.85, 0.2: 0.45, 0.4: 0.2}[gap]


def test_margins_are_raced_too() -> None:
    rng = np.random.default_rng(1)
    one = rng.normal(1.0, 2.0, 200)
    noise = rng.normal(0.0, 0.5, 200)
    equal = one + noise - noise.mean()
    assert dropped(one, equal, 400, bounded=False)[0] <= 0.05
    assert dropped(one, equal - 0.3, 200, bounded=False)[0] >= 0.95


@pytest.mark.parametrize("reference", [0.0, 0.5, 1.0])
def test_an_equal_candidate_is_never_dropped(reference: float) -> None:
    one, _ = pair(200, reference, 0, 0)
    assert dropped(one, one, 20)[0] == 0


def test_what_cannot_be_made_good_is_dropped_for_certain() -> None:
    """The reference is right on all items, so each wrong item is a loss for good."""
    one, other = np.ones(200), np.ones(200)
    other[:5] = 0
    assert stops_at(other, race(one, slack=0.03)) == 200  # 2.5 % is within the slack
    other[:7] = 0
    assert stops_at(other, race(one, slack=0.03)) == 25
    assert stops_at(other, race(one, slack=0.03, bounded=False)) == 200


@settings(deadline=None, max_examples=150)
@given(
    data=st.data(),
    size=st.integers(20, 90),
    slack=st.sampled_from([0.0, 0.03, 0.1]),
)
def test_a_certain_drop_is_right(data: st.DataObject, size: int, slack: float) -> None:
    """alpha so small that only certainty is left: then no candidate is ever dropped wrongly."""
    bits = st.lists(st.sampled_from([0.0, 0.5, 1.0]), min_size=size, max_size=size)
    one, other = np.asarray(data.draw(bits)), np.asarray(data.draw(bits))
    against = race(one, slack=slack, alpha=1e-12)
    if stops_at(other, against) < size:
        assert other.mean() < one.mean() - slack


@settings(deadline=None)
@given(size=st.integers(1, 3000), at_least=st.integers(2, 40))
def test_blocks_rise_to_all_items_and_no_look_comes_too_early(size: int, at_least: int) -> None:
    against = Race(
        RacingSettings(min_items=at_least), {"t": [0.0] * size}, 0.0, {"t": 1.0}, bounded=True
    )
    ends = [end["t"] for end in against.ends()]
    assert ends == sorted(set(ends))
    assert ends[-1] == size
    assert all(end >= at_least for end in ends[:-1])


def test_tasks_are_weighted_strata() -> None:
    """A loss on a task of small weight does not make hopeless; the same on a heavy one does."""
    good, bad = [1.0, 0.0] * 80, [0.0, 0.0] * 80
    reference = {"a": good, "b": good}

    def hopeless(a: list[float], b: list[float]) -> bool:
        shares = {"a": 0.95, "b": 0.05}
        return Race(RacingSettings(), reference, 0.5, shares, bounded=True).is_hopeless(
            {"a": a[:20], "b": b[:20]}
        )

    assert hopeless(bad, good)
    assert not hopeless(good, bad)


def test_the_guard_of_the_reference_lowers_the_bar() -> None:
    good, bad = [1.0, 0.0] * 80, [0.0, 0.0] * 80

    def hopeless(fitness: float) -> bool:
        against = Race(RacingSettings(), {"t": good}, fitness, {"t": 1.0}, bounded=True)
        return against.is_hopeless({"t": bad[:20]})

    assert hopeless(0.5)
    assert not hopeless(0.1)  # the reference pays a penalty of 0.4


@pytest.mark.parametrize("looks", [(0.5, 0.25), (0.0,), (1.0,), (0.2, 0.2)])
def test_looks_that_make_no_sense_are_refused(looks: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match="looks must be shares between 0 and 1 that rise"):
        RacingSettings(looks=looks)
