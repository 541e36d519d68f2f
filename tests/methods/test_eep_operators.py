"""The operators: what they may change, and how often they do (fixed seeds, loose bounds)."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from offline.maps.depth_groups import fits, total_kept
from offline.maps.genome import Coefficients, Genome, selected
from offline.methods import eep_operators as variation
from offline.methods.eep_operators import Active
from tests.maps.genomes import Case, cases
from tests.maps.landscape import space_of

PROPERTIES = settings(max_examples=60, deadline=None)
ALL = Active((True,) * 4, (True,) * 4)
NONE = Active((False,) * 4, (False,) * 4)


def generator(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def genome_of(*kept: tuple[int, ...], experts: int = 8) -> Genome:
    return Genome.of_kept(kept, [experts] * len(kept))


FRONT = genome_of((0, 1, 2, 3), (0, 1, 2, 3), (0, 1, 2, 3), (0, 1, 2, 3))
BACK = genome_of((4, 5, 6, 7), (4, 5, 6, 7), (4, 5, 6, 7), (4, 5, 6, 7))


def test_each_matrix_is_active_as_often_as_asked_given_that_one_is() -> None:
    rng = generator()
    draws = [variation.draw_active(4, 0.25, 0.25, rng) for _ in range(4000)]
    assert all(any(a.experts + a.router) for a in draws)
    expected = 0.25 / (1 - 0.75**8)  # 0.278
    rates = np.mean([a.experts + a.router for a in draws], axis=0)
    assert np.abs(rates - expected).max() < 0.03  # 4 standard deviations
    both = np.mean([a.experts[0] and a.router[0] for a in draws])
    assert abs(both - 0.0625 / (1 - 0.75**8)) < 0.02  # W_EM and W_RM of a group independently


def test_router_matrices_can_be_left_out() -> None:
    draws = [variation.draw_active(3, 0.2, 0.0, generator(seed)) for seed in range(50)]
    assert not any(any(a.router) for a in draws)


def test_rows_of_active_groups_are_swapped_at_the_rate_asked() -> None:
    rng, moved, rest = generator(), 0, 0
    active = Active((True, False, True, False), (False,) * 4)
    for _ in range(1000):
        child = variation.swap_experts(FRONT, active, 0.15, rng)
        changed = [
            sum(a != b for a, b in zip(c.main, f.main, strict=True))
            for c, f in zip(child.groups, FRONT.groups, strict=True)
        ]
        moved += changed[0] + changed[2]
        rest += changed[1] + changed[3]
    assert rest == 0
    assert abs(moved / 8000 - 0.15) < 0.02


def test_a_swap_reaches_every_expert_that_is_not_kept_equally_often() -> None:
    rng, counts = generator(), np.zeros(8)
    for _ in range(1000):
        child = variation.swap_experts(genome_of((3,)), Active((True,), (False,)), 1.0, rng)
        counts[list(child.groups[0].main)] += 1
    assert counts[3] == 0
    assert np.abs(np.delete(counts, 3) - 1000 / 7).max() < 55  # 5 standard deviations


@PROPERTIES
@given(case=cases(one_hot=True), probability=st.sampled_from([0.15, 0.5, 1.0]))
def test_a_swap_keeps_genomes_one_hot_tied_and_distinct(case: Case, probability: float) -> None:
    active = variation.draw_active(len(case.groups), 0.5, 0.5, case.draw)
    child = variation.swap_experts(case.genome, active, probability, case.draw)
    assert child.rows == case.genome.rows
    assert child.is_tied
    for group in child.groups:
        kept = selected(group.experts)
        assert kept is not None and len(set(kept)) == len(kept)


def test_noise_touches_active_elements_at_the_rate_and_scale_asked() -> None:
    rng = generator()
    active = Active((True, False, False, False), (False, True, False, False))
    changes = {"active": [], "rest": []}  # type: dict[str, list[np.ndarray]]
    for _ in range(400):
        child = variation.add_noise(FRONT, active, 0.25, 0.065, rng)
        for number, (new, old) in enumerate(zip(child.groups, FRONT.groups, strict=True)):
            changes["active" if number == 0 else "rest"].append(new.experts - old.experts)
            changes["active" if number == 1 else "rest"].append(new.router - old.router)
    assert np.abs(changes["rest"]).max() == 0
    noise = np.concatenate(changes["active"]).ravel()
    assert abs((noise != 0).mean() - 0.25) < 0.01  # 25,600 elements
    assert abs(noise[noise != 0].std() - 0.065) < 0.003
    assert abs(noise[noise != 0].mean()) < 0.003


def test_normalised_rows_sum_to_one_but_for_those_that_cancel_out() -> None:
    experts = np.array([[1.5, 0.5, 0], [1, -1, 0.01], [-1, -1, 0], [0, 0, 0]], np.float32)
    experts = np.pad(experts, ((0, 0), (0, 2)))
    router = 3 * np.eye(5, dtype=np.float32)[:4]
    (group,) = variation.normalise_rows(Genome((Coefficients(experts, router),))).groups
    np.testing.assert_allclose(group.experts[0], [0.75, 0.25, 0, 0, 0])
    np.testing.assert_array_equal(group.experts[1], experts[1])
    np.testing.assert_allclose(group.experts[2], [0.5, 0.5, 0, 0, 0])
    np.testing.assert_array_equal(group.experts[3], experts[3])
    np.testing.assert_array_equal(group.router, router)
    assert variation.normalise_rows(FRONT) == FRONT


def test_rows_come_from_the_front_parent_at_the_rate_asked() -> None:
    rng = generator()
    active = Active((True, True, False, False), (True, False, True, False))
    children = [variation.cross_rows(FRONT, BACK, active, 0.6, rng) for _ in range(1000)]
    experts = np.array([[g.experts[:, :4].sum(axis=1) for g in c.groups] for c in children])
    router = np.array([[g.router[:, :4].sum(axis=1) for g in c.groups] for c in children])
    for table in (experts, router):  # [children, groups, rows], 1 where from the front
        assert np.abs(table.mean(axis=(0, 2)) - 0.6).max() < 0.06
    for table, flags in ((experts, active.experts), (router, active.router)):
        whole = (table.min(axis=2) == table.max(axis=2)).mean(axis=0)  # 0.6^4 + 0.4^4 = 0.155
        assert all((rate == 1) != flag for rate, flag in zip(whole, flags, strict=True))
    apart = (experts != router).mean(axis=(0, 2))  # 2 x 0.6 x 0.4 = 0.48
    assert np.abs(apart - 0.48).max() < 0.06


def test_kept_sets_are_crossed_without_losing_what_both_keep() -> None:
    front, back = genome_of((0, 1, 2, 3)), genome_of((7, 3, 5, 0))
    rng, taken = generator(), 0
    for _ in range(500):
        active = Active((True,), (False,))
        (child,) = variation.cross_kept(front, back, active, 0.6, rng).groups
        kept = set(child.main)
        assert len(kept) == 4 and child.is_tied
        assert {0, 3} <= kept <= {0, 1, 2, 3, 5, 7}
        taken += len(kept & {1, 2})
    assert abs(taken / 1000 - 0.6) < 0.06


def test_an_inactive_group_of_kept_experts_comes_whole() -> None:
    children = [variation.cross_kept(FRONT, BACK, NONE, 0.6, generator(s)) for s in range(200)]
    groups = [group for child in children for group in child.groups]
    assert {group.main for group in groups} == {(0, 1, 2, 3), (4, 5, 6, 7)}
    assert abs(np.mean([group.main[0] == 0 for group in groups]) - 0.6) < 0.08


def test_aligned_rows_meet_and_compute_the_same() -> None:
    rows = np.eye(8, dtype=np.float32)[[6, 2, 0, 5]]
    other = Genome((Coefficients(rows, rows + np.arange(4)[:, None]),))
    front = genome_of((0, 1, 2, 3))
    (found,) = variation.aligned(other, front).groups
    assert found.main == (0, 6, 2, 5)
    pairs = {(m, float(r[7])) for m, r in zip(found.main, found.router, strict=True)}
    assert pairs == {(6, 0.0), (2, 1.0), (0, 2.0), (5, 3.0)}  # W_RM's rows went along


@PROPERTIES
@given(case=cases())
def test_every_operator_keeps_to_the_bounds_and_the_budget(case: Case) -> None:
    space, groups, rng = case.space, case.groups, case.draw
    active = variation.draw_active(len(groups), 0.5, 0.5, rng)
    other = variation.random_genome(groups, space.budget, rng)
    parents = {total_kept(g.rows, groups) for g in (case.genome, other)}
    children = [
        other,
        variation.add_noise(case.genome, active, 0.5, 0.1, rng),
        variation.normalise_rows(case.genome),
        variation.cross_rows(case.genome, variation.aligned(other, case.genome), active, 0.6, rng),
        variation.cross_rows(other, case.genome, active, 0.6, rng),
        variation.move_budget(case.genome, groups, rng),
    ]
    if case.genome.is_tied and case.genome.is_one_hot:
        children.append(variation.cross_rows(case.genome, other, active, 0.6, rng))
    for child in children:
        assert space.accepts(child, groups)
        assert fits(child.rows, groups, space.budget)
        assert total_kept(child.rows, groups) in parents


@PROPERTIES
@given(case=cases(one_hot=True))
def test_pruning_s_operators_keep_one_hot_genomes_of_the_same_budget(case: Case) -> None:
    other = variation.random_genome(case.groups, case.space.budget, case.draw)
    active = variation.draw_active(len(case.groups), 0.5, 0.5, case.draw)
    for child in (
        variation.cross_kept(case.genome, other, active, 0.6, case.draw),
        variation.move_budget(case.genome, case.groups, case.draw),
    ):
        assert case.space.accepts(child, case.groups)
        assert child.is_one_hot and child.is_tied
        assert all(len(set(group.main)) == group.rows for group in child.groups)
        assert total_kept(child.rows, case.groups) == total_kept(case.genome.rows, case.groups)


def test_a_move_takes_one_expert_and_gives_one_to_a_group_of_as_many_layers() -> None:
    groups = space_of(7, 4, budget=14, floor=1).groups(3)  # of 2, 2 and 3 layers
    genome = genome_of((0, 3), (1, 2), (0, 1), experts=4)
    rng, seen = generator(), set()
    for _ in range(100):
        child = variation.move_budget(genome, groups, rng)
        seen.add(child.rows)
        assert child.groups[2].main == (0, 1)
        assert child.is_tied
        gives, takes = (0, 1) if child.rows[0] == 1 else (1, 0)
        assert set(child.groups[gives].main) < set(genome.groups[gives].main)
        assert set(child.groups[takes].main) > set(genome.groups[takes].main)
    assert seen == {(1, 3, 2), (3, 1, 2)}


def test_no_move_breaks_the_floor_or_adds_what_is_not_there() -> None:
    groups = space_of(2, 4, budget=6, floor=2).groups()
    genome = genome_of((0, 1, 2, 3), (1, 2), experts=4)
    rows = {variation.move_budget(genome, groups, generator(seed)).rows for seed in range(30)}
    assert rows == {(3, 3)}
    full = space_of(2, 4, budget=8).groups()
    identity = Genome.identity([4, 4])
    assert variation.move_budget(identity, full, generator()) == identity


def test_parents_that_spread_the_budget_differently_are_not_mixed_there() -> None:
    front, back = genome_of((0, 1), (0, 1, 2), (5,)), genome_of((3, 4, 5), (6, 7), (6,))
    rng = generator()
    active = Active((True,) * 3, (True,) * 3)
    children = [variation.cross_rows(front, back, active, 0.6, rng) for _ in range(300)]
    assert {child.rows for child in children} == {(2, 3, 1), (3, 2, 1)}
    assert abs(np.mean([child.rows == front.rows for child in children]) - 0.6) < 0.1
    assert {child.groups[0].main for child in children} == {(0, 1), (3, 4, 5)}
    assert {child.groups[2].main for child in children} == {(5,), (6,)}


def test_random_genomes_keep_every_expert_equally_often_and_spread_a_budget_in_many_ways() -> None:
    space = space_of(4, budget=16)
    draws = [variation.random_genome(space.groups(), 16, generator(seed)) for seed in range(800)]
    counts = np.sum([g.experts.sum(axis=0) for genome in draws for g in genome.groups], axis=0)
    assert np.abs(counts / counts.mean() - 1).max() < 0.1
    assert len({genome.rows for genome in draws}) > 30
    assert all(sum(genome.rows) == 16 for genome in draws)
