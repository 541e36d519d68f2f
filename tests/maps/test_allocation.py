"""A budget spread exactly: against every way there is."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from offline.maps.allocation import least_loss_rows
from offline.maps.depth_groups import DepthGroup, Groups, fits, total_kept

Case = tuple[Groups, int, list[NDArray[np.float64]]]


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """Groups of one or two layers, with steps of one or two, a budget and their losses."""
    groups: Groups = ()
    losses = []
    step = draw(st.integers(1, 2))
    for number in range(draw(st.integers(1, 4))):
        experts = step * draw(st.integers(1, 4))
        least = step * draw(st.integers(1, experts // step))
        size = draw(st.integers(1, 2))
        layers = tuple(range(10 * number, 10 * number + size))
        groups += (DepthGroup(layers, experts, least, experts, step),)
        found = st.lists(st.floats(-1, 3), min_size=experts + 1, max_size=experts + 1)
        losses.append(np.array(draw(found)))
    least = total_kept([group.least for group in groups], groups)
    most = total_kept([group.most for group in groups], groups)
    return groups, draw(st.integers(least, most + 1)), losses


@settings(max_examples=150, deadline=None)
@given(cases())
def test_no_way_that_spends_as_much_loses_less(case: Case) -> None:
    groups, budget, losses = case
    found = least_loss_rows(groups, budget, losses)
    ranges = [range(group.least, group.most + 1, group.step) for group in groups]
    ways = [way for way in itertools.product(*ranges) if fits(way, groups, budget)]
    assert found in ways
    most = max(total_kept(way, groups) for way in ways)
    assert total_kept(found, groups) == most

    def loss(way: tuple[int, ...]) -> float:
        return float(sum(one[rows] for one, rows in zip(losses, way, strict=True)))

    least = min(loss(way) for way in ways if total_kept(way, groups) == most)
    assert loss(found) == pytest.approx(least, abs=1e-12)


def test_a_step_that_brings_nothing_is_taken_for_the_one_behind_it() -> None:
    """To the first layer one expert more brings nothing until the fourth brings everything."""
    groups = tuple(DepthGroup((layer,), 4, 1, 4) for layer in range(2))
    cliff, slope = np.array([9, 9, 9, 9, 0.0]), np.array([9, 4, 3, 2, 1.0])
    assert least_loss_rows(groups, 5, [cliff, slope]) == (4, 1)
    assert least_loss_rows(groups, 4, [cliff, slope]) == (1, 3)
    assert least_loss_rows(groups, 8, [cliff, slope]) == (4, 4)
