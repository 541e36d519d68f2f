"""Group-limited routers: whatever makes a map, every group keeps equally many experts."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from offline.criteria.order import order_of
from offline.maps.depth_groups import Groups, total_kept
from offline.maps.map_entries import kept_genome
from offline.maps.map_space import Kept, Space
from offline.maps.router_groups import RouterGroups
from offline.methods import eep_operators as variation
from offline.methods.baselines import most_used, naee, random_kept
from offline.methods.eep import check_phases, settings_of
from offline.methods.keep_last import keep_last
from tests.maps.landscape import space_of
from tests.sample_shapes import reshaped
from vllm_moe_prune.errors import PruneError
from vllm_moe_prune.layouts import LAYOUTS
from vllm_moe_prune.provenance import Provenance

PROPERTIES = settings(max_examples=60, deadline=None)
BY_HAND = Provenance(method="by hand")
LAYERS = 4


@dataclass(frozen=True)
class Case:
    """A space with router groups, its depth groups, and a seed for what is drawn."""

    space: Space
    groups: Groups
    seed: int


@st.composite
def cases(draw: st.DrawFn) -> Case:
    router = draw(st.integers(2, 4))
    size = draw(st.integers(2, 5))
    active = draw(st.integers(1, router))
    top_k = draw(st.integers(1, active * size))
    whole = space_of(LAYERS, router * size, None, top_k=top_k)
    whole = reshaped(whole, num_groups=router, topk_group=active)
    least = whole.router_groups.least(top_k)
    if draw(st.booleans()):
        space = replace(whole, keep=router * draw(st.integers(least // router, size)))
    else:
        budget = draw(st.integers(LAYERS * least, LAYERS * router * size))
        space = replace(whole, budget=budget)
    depth = draw(st.integers(1, LAYERS))
    return Case(space, space.groups(depth), draw(st.integers(0, 2**32 - 1)))


def check(space: Space, kept: Mapping[int, Kept]) -> None:
    """Check counts and budget, and that the map can be made, which checks its groups again."""
    size = space.num_experts[0] // space.shape.num_groups
    for ids in kept.values():
        assert len(set(ids)) == len(ids)
        each = [sum(i // size == group for i in ids) for group in range(space.shape.num_groups)]
        assert len(set(each)) == 1 and each[0] >= 2
        assert each[0] * space.shape.topk_group >= space.top_k[0]
    if isinstance(space.keep, int):
        assert {len(ids) for ids in kept.values()} == {space.keep}
    if space.budget is not None:
        assert sum(map(len, kept.values())) <= space.budget
    routing_map = space.routing_map(kept, BY_HAND)
    assert {layer.router for layer in routing_map.layers} == {"sliced"}


def kept_of(genome: variation.Genome, groups: Groups) -> dict[int, Kept]:
    pairs = zip(groups, genome.groups, strict=True)
    return {layer: own.main for group, own in pairs for layer in group.layers}


@PROPERTIES
@given(case=cases())
def test_one_shot_choices_and_baselines_share_equally(case: Case) -> None:
    space, rng = case.space, np.random.default_rng(case.seed)
    values = {n: rng.random(count) for n, count in space.num_experts.items()}
    none = {n: np.zeros(len(v), bool) for n, v in values.items()}
    orders = {n: order_of(v, "min", none[n]) for n, v in values.items()}
    check(space, keep_last(space, orders))
    check(space, keep_last(space, orders, case.groups))
    check(space, random_kept(space, random.Random(case.seed)))
    check(space, most_used(space, {n: v.tolist() for n, v in values.items()}, case.groups))


@PROPERTIES
@given(case=cases(), data=st.data())
def test_protected_experts_stay_and_groups_stay_equal(case: Case, data: st.DataObject) -> None:
    space, rng = case.space, np.random.default_rng(case.seed)
    ids = st.sets(st.integers(0, space.num_experts[0] - 1), max_size=3)
    protected = {n: data.draw(ids) for n in space.layers}
    orders = {
        n: order_of(rng.random(count), "min", np.zeros(count, bool))
        for n, count in space.num_experts.items()
    }
    try:
        kept = keep_last(space, orders, protected=protected)
    except PruneError as error:
        assert "protected" in error.message
        return
    check(space, kept)
    assert all(protected[n] <= set(kept[n]) for n in space.layers)


@PROPERTIES
@given(case=cases(), probability=st.sampled_from([0.15, 0.5, 1.0]))
def test_every_operator_of_the_search_shares_equally(case: Case, probability: float) -> None:
    space, groups, draw = case.space, case.groups, np.random.default_rng(case.seed)
    router = space.router_groups
    front, back = (variation.random_genome(groups, space.budget, draw) for _ in range(2))
    active = variation.draw_active(len(groups), 0.5, 0.5, draw)
    for child in (
        front,
        variation.swap_experts(front, active, probability, draw, router),
        variation.cross_kept(front, back, active, 0.6, draw, router),
        variation.cross_kept(front, variation.aligned(back, front), active, 0.6, draw, router),
        variation.move_budget(front, groups, draw),
    ):
        assert space.accepts(child, groups)
        spent = total_kept(child.rows, groups)
        assert spent in {total_kept(front.rows, groups), total_kept(back.rows, groups)}
        check(space, kept_of(child, groups))


def test_a_swap_reaches_every_expert_of_its_own_group_and_no_other() -> None:
    router = RouterGroups(2, 1)
    genome = variation.Genome.of_kept([(0, 1, 4, 5)], [8])
    draw, active = np.random.default_rng(0), variation.Active((True,), (False,))
    children = [
        variation.swap_experts(genome, active, 0.5, draw, router).groups[0].main for _ in range(200)
    ]
    assert {expert for main in children for expert in main[:2]} == set(range(4))
    assert {expert for main in children for expert in main[2:]} == set(range(4, 8))


def test_the_budget_moves_one_expert_of_each_group() -> None:
    space = reshaped(space_of(2, 8, budget=8), num_groups=2)
    groups = space.groups()
    start = kept_genome({0: (0, 1, 4, 5), 1: (2, 3, 6, 7)}, groups)
    assert variation.move_budget(start, groups, np.random.default_rng(0)) == start  # at the least
    space = replace(space, budget=12)
    start = kept_genome({0: (0, 1, 2, 4, 5, 6), 1: (1, 2, 3, 5, 6, 7)}, groups)
    draws = [variation.move_budget(start, space.groups(), np.random.default_rng(s)).rows
             for s in range(20)]  # fmt: skip
    assert set(draws) == {(4, 8), (8, 4)}


def test_a_space_that_keeps_less_than_a_group_can_share_refuses_a_genome() -> None:
    space = reshaped(space_of(2, 8, 4), num_groups=2)
    groups = space.groups(1)
    assert space.accepts(variation.Genome.of_kept([(0, 3, 4, 7)], [8]), groups)
    assert not space.accepts(variation.Genome.of_kept([(0, 1, 3, 7)], [8]), groups)


def test_naee_compares_only_subsets_that_groups_share() -> None:
    space = reshaped(space_of(1, 8, 4), num_groups=2)
    fits, not_fits = (0, 1, 4, 5), (0, 1, 2, 4)
    assert naee(space, {0: {not_fits: 0.1, fits: 0.5}}) == {0: fits}
    with pytest.raises(PruneError, match="in each of the 2 groups"):
        naee(space, {0: {not_fits: 0.1}})


def test_a_grouped_router_cannot_be_merged() -> None:
    space = reshaped(space_of(2, 8, 4), num_groups=2)
    with pytest.raises(PruneError, match="first chooses among 2 groups cannot be mapped"):
        check_phases(space, settings_of("fast"), has_initial=False)


def test_what_a_config_says_of_groups() -> None:
    layout = LAYOUTS["deepseek_v3"]
    assert RouterGroups.of(layout, {"n_group": 8, "topk_group": 4}) == RouterGroups(8, 4)
    assert RouterGroups.of(layout, {"n_group": 1, "topk_group": 1}) == RouterGroups(1, 1)
    assert RouterGroups.of(LAYOUTS["mixtral"], {"topk_group": 4}) == RouterGroups(1, 1)
    router = RouterGroups(8, 4)
    assert [router.least(k) for k in (1, 8, 9, 16)] == [16, 16, 24, 32]
    assert (router.reachable(64), router.rounded_up(57), router.rounded_up(64)) == (32, 64, 64)
