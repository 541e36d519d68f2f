"""EEP's pruning phase with a fitness that needs no model."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable
from types import MappingProxyType

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from offline.methods import eep
from offline.methods.eep import EepSettings, Genome, Individual, depth_groups, kept_by_layer
from offline.methods.space import Space
from tests.vllm_moe_prune.bare import BASE

FAST = settings(max_examples=25, deadline=None)


def space_of(layers: int = 6, experts: int = 8, keep: int = 4) -> Space:
    return Space(
        model_type="mixtral",
        base=BASE,
        num_experts=MappingProxyType({layer: experts for layer in range(layers)}),
        num_groups=1,
        keep=keep,
        top_k=1,
    )


def likes_low_ids(genome: Genome) -> float:
    """A fitness with one best genome (all lowest ids) and a slope towards it."""
    ids = [expert for kept in genome for expert in kept]
    return 1.0 - sum(ids) / 100


def run(
    space: Space,
    fitness: Callable[[Genome], float] = likes_low_ids,
    seed: int = 0,
    **numbers: float,
) -> list[list[Individual]]:
    """Return the population after each evaluation."""
    chosen = EepSettings(**{"num_initial": 10, "num_evaluations": 40} | numbers)  # type: ignore[arg-type]
    return [list(p) for p in eep.search(space, chosen, fitness, random.Random(seed))]


def test_the_released_numbers_are_the_defaults() -> None:
    assert EepSettings().model_dump() == {
        "num_groups": 4,
        "num_initial": 30,
        "num_evaluations": 100,
        "group_probability": 0.25,
        "row_probability": 0.15,
        "parent_threshold": 0.03,
    }


@FAST
@given(st.integers(0, 1000))
def test_the_population_only_grows_and_the_best_never_decreases(seed: int) -> None:
    history = run(space_of(), seed=seed)
    assert [len(population) for population in history] == list(range(1, 41))
    for before, after in itertools.pairwise(history):
        assert after[:-1] == before
        assert eep.best(after)[0].fitness >= eep.best(before)[0].fitness


@FAST
@given(st.integers(0, 1000), st.integers(1, 8))
def test_rows_are_distinct_experts_and_no_genome_comes_twice(seed: int, keep: int) -> None:
    population = run(space_of(layers=2, keep=keep), seed=seed, num_groups=2)[-1]
    for individual in population:
        assert len(individual.genome) == 2
        for kept in individual.genome:
            assert len(kept) == len(set(kept)) == keep
            assert set(kept) <= set(range(8))
    assert len({tuple(map(frozenset, i.genome)) for i in population}) == len(population)


@FAST
@given(st.integers(0, 1000))
def test_a_child_differs_from_a_parent_within_the_threshold_in_few_groups(seed: int) -> None:
    """Rows stay in place under mutation, so a child shows which parent it came from."""
    history = run(space_of(), seed=seed, parent_threshold=0.03)
    for before, after in itertools.pairwise(history[9:]):
        least = eep.best(before)[0].fitness - 0.03 - 1e-9
        parents = [i.genome for i in before if i.fitness >= least]
        moved = min(_rows_moved(after[-1].genome, parent) for parent in parents)
        assert 1 <= moved <= 12  # of 16; a random genome shares 2 rows in place on average


def _rows_moved(child: Genome, parent: Genome) -> int:
    rows = zip(child, parent, strict=True)
    return sum(a != b for mine, theirs in rows for a, b in zip(mine, theirs, strict=True))


def test_only_individuals_within_the_threshold_become_parents() -> None:
    a, b, c = (Individual(((n,),), fitness) for n, fitness in enumerate((0.5, 0.47, 0.46)))
    chosen = EepSettings(parent_threshold=0.03)
    rng = random.Random(0)
    seen = {eep._parent([a, b, c], chosen, rng).genome for _ in range(100)}
    assert seen == {a.genome, b.genome}


def test_the_same_seed_is_the_same_search_and_another_is_not() -> None:
    assert run(space_of(), seed=3) == run(space_of(), seed=3)
    assert run(space_of(), seed=3) != run(space_of(), seed=4)


def test_the_search_climbs() -> None:
    """On a slope the mutations must find what 10 random genomes do not have."""
    history = run(space_of(), num_evaluations=300)
    first, last = eep.best(history[9])[0].fitness, eep.best(history[-1])[0].fitness
    assert last >= first + 0.1
    assert last <= likes_low_ids(((0, 1, 2, 3),) * 4)


def test_a_space_of_six_maps_ends_after_six_evaluations() -> None:
    population = run(space_of(layers=3, experts=4, keep=2), num_groups=1)[-1]
    assert len(population) == 6
    assert {frozenset(i.genome[0]) for i in population} == {
        frozenset(pair) for pair in ((0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3))
    }


def test_keeping_every_expert_leaves_one_map() -> None:
    assert [i.genome for i in run(space_of(layers=2, experts=3, keep=3), num_groups=1)[-1]] == [
        ((0, 1, 2),)
    ]


@pytest.mark.parametrize(
    ("layers", "count", "groups"),
    [
        ((0, 1, 2, 3), 4, ((0,), (1,), (2,), (3,))),
        ((3, 4, 5, 6, 7, 8, 9), 3, ((3, 4), (5, 6), (7, 8, 9))),
        ((1, 2), 4, ((1,), (2,))),
        ((1, 2, 3), 1, ((1, 2, 3),)),
    ],
)
def test_groups_go_by_depth_and_the_last_takes_the_remainder(
    layers: tuple[int, ...], count: int, groups: tuple[tuple[int, ...], ...]
) -> None:
    assert depth_groups(layers, count) == groups


def test_a_group_shares_its_kept_experts() -> None:
    assert kept_by_layer(((0, 1), (2, 3)), ((5, 6), (7, 8, 9))) == {
        5: (0, 1),
        6: (0, 1),
        7: (2, 3),
        8: (2, 3),
        9: (2, 3),
    }


def test_ties_go_to_the_one_found_first() -> None:
    population = [Individual(((n,),), fitness) for n, fitness in enumerate((0.1, 0.5, 0.5, 0.2))]
    assert [i.genome for i in eep.best(population, 3)] == [((1,),), ((2,),), ((3,),)]
