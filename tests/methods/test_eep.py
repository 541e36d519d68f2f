"""EEP's search, followed step by step with a fitness that needs no model."""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from offline.maps.genome import Coefficients
from offline.maps.map_space import Space
from offline.methods import eep
from offline.methods.eep import Assess, Assessed, Genome, Population
from offline.methods.eep_settings import PRESETS, settings_of
from tests.maps.landscape import Landscape, space_of
from tests.sample_shapes import shape_of
from vllm_moe_prune.errors import PruneError

FAST = settings(max_examples=8, deadline=None)
SMALL = {"num_initial": 10, "prune_until": 40, "num_evaluations": 90}
CHANGED = ["prune", "merge"]


def likes_low_ids(genome: Genome) -> float:
    """A fitness with a slope towards the lowest ids and a little more of every expert."""
    mass = np.mean([np.mean(g.experts @ np.arange(g.num_experts)) for g in genome.groups])
    router = np.mean([np.diagonal(group.router, 1).sum() for group in genome.groups])
    return float(1 - mass / 16 + router / 50)


def assess(genomes: Sequence[Genome], _: str) -> list[Assessed]:
    return [Assessed(likes_low_ids(genome)) for genome in genomes]


def run(
    space: Space,
    seed: int = 0,
    judge: Assess = assess,
    initial: Sequence[Genome] = (),
    preset: Any = "paper",
    **numbers: Any,
) -> list[Population]:
    """Return the population after each generation."""
    chosen = settings_of(preset, **(SMALL if preset == "paper" else {}) | numbers)
    found = eep.search(space, chosen, judge, random.Random(seed), initial=initial)
    return [list(population) for population in found]


@pytest.mark.parametrize("preset", ["paper", "fast"])
@FAST
@given(seed=st.integers(0, 1000))
def test_the_population_only_grows_and_the_best_never_decreases(preset: str, seed: int) -> None:
    history = run(space_of(), seed, preset=preset)
    for before, after in itertools.pairwise(history):
        assert after[: len(before)] == before
        assert len(after) > len(before)
        assert eep.best(after)[0].fitness >= eep.best(before)[0].fitness


def test_phases_begin_and_end_where_the_released_search_has_them() -> None:
    history = run(space_of(), **PRESETS["paper"].model_dump())
    assert len(history[0]) == 30  # not 31: the released test is off by one
    assert [len(population) for population in history[1:]] == list(range(31, 401))
    phases = [individual.phase for individual in history[-1]]
    assert phases == ["initial"] * 30 + ["prune"] * 70 + ["merge"] * 300
    assert [i.generation for i in history[-1]] == [0] * 30 + list(range(1, 371))


@FAST
@given(seed=st.integers(0, 1000), keep=st.integers(1, 7))
def test_pruning_stays_one_hot_tied_and_distinct_and_merging_does_not(seed: int, keep: int) -> None:
    for preset in ("paper", "fast"):
        population = run(space_of(keep=keep), seed, preset=preset)[-1]
        for individual in population:
            if individual.phase != "merge":
                assert individual.genome.is_tied
                assert all(len(set(g.main)) == keep for g in individual.genome.groups)
                assert individual.genome.is_one_hot
    merged = [i.genome for i in population if i.phase == "merge"]
    assert any(not genome.is_tied for genome in merged)
    assert any(not genome.is_one_hot for genome in merged)


@pytest.mark.parametrize("preset", ["paper", "fast"])
def test_parents_are_those_of_the_generation_before_and_near_enough_to_the_best(
    preset: str,
) -> None:
    history = run(space_of(), preset=preset)
    chosen = settings_of(preset, **SMALL if preset == "paper" else {})  # type: ignore[arg-type]
    seen = set()
    for before, after in itertools.pairwise(history):
        ranked = sorted((i.fitness for i in before), reverse=True)
        for child in after[len(before) :]:
            crossed = len(child.parents) == 2
            seen.add((child.phase, crossed))
            assert len(set(child.parents)) == len(child.parents) in (1, 2)
            threshold = chosen.crossover_threshold if crossed else chosen.mutation_threshold
            rank = chosen.crossover_rank if crossed else chosen.mutation_rank
            least = ranked[0] - threshold
            if rank:
                least = min(least, ranked[min(rank, len(ranked)) - 1])
            assert all(before[parent].fitness >= least - 1e-9 for parent in child.parents)
    expected = {("prune", False), ("merge", False), ("merge", True)}
    assert seen == expected | ({("prune", True)} if chosen.crossover_phases == "both" else set())


def test_crossover_comes_at_its_rate_in_merging_only() -> None:
    population = run(space_of(), num_evaluations=600, num_initial=10, prune_until=150)[-1]
    crossed = {phase: [len(i.parents) == 2 for i in population if i.phase == phase]
               for phase in CHANGED}  # fmt: skip
    assert not any(crossed["prune"])
    assert abs(np.mean(crossed["merge"]) - 0.3) < 0.07


def test_a_child_of_pruning_differs_from_its_parent_in_few_rows() -> None:
    population = run(space_of())[-1]
    moved = []
    for individual in population:
        if individual.phase == "prune":
            parent = population[individual.parents[0]].genome
            pairs = zip(individual.genome.groups, parent.groups, strict=True)
            moved.append(sum(a != b for x, y in pairs for a, b in zip(x.main, y.main, strict=True)))
    assert min(moved) >= 1  # a copy would have been drawn again
    assert np.mean(moved) < 4  # of 16 rows


def test_a_dropped_candidate_stays_in_the_population_but_has_no_children() -> None:
    def race(genomes: Sequence[Genome], _: str) -> list[Assessed]:
        worth = [likes_low_ids(genome) for genome in genomes]
        return [Assessed(w + (w < 0.8), complete=w >= 0.8) for w in worth]

    population = run(space_of(), judge=race)[-1]
    dropped = {n for n, i in enumerate(population) if not i.assessed.complete}
    assert dropped
    assert max(population, key=lambda i: i.fitness).assessed.complete is False
    assert not any(dropped & set(individual.parents) for individual in population)
    assert len(population) == 90


@FAST
@given(seed=st.integers(0, 1000), keep=st.integers(1, 8))
def test_no_candidate_comes_twice_unless_asked(seed: int, keep: int) -> None:
    population = run(space_of(layers=2, keep=keep), seed, num_groups=2)[-1]
    assert len({i.genome.key for i in population}) == len(population)


def test_the_paper_s_copies_can_be_had() -> None:
    population = run(space_of(), skip_known=False)[-1]
    keys = [i.genome.key for i in population]
    pruned = [key for key, i in zip(keys, population, strict=True) if i.phase == "prune"]
    assert len(set(keys[:10])) == 10  # the first generation is deduplicated there too
    assert 0.2 < sum(keys.index(key) < keys[10:].index(key) + 10 for key in pruned) / 30 < 0.9


@pytest.mark.parametrize("preset", ["paper", "fast"])
def test_the_same_seed_and_fitness_are_the_same_search_and_another_seed_is_not(
    preset: str,
) -> None:
    first = run(space_of(budget=20), 3, preset=preset)
    remembered = {i.genome.key: i.assessed for i in first[-1]}
    again = run(
        space_of(budget=20), 3, lambda gs, _: [remembered[g.key] for g in gs], preset=preset
    )
    assert again == first
    assert run(space_of(budget=20), 4, preset=preset)[-1] != first[-1]


def test_a_generation_is_drawn_before_any_of_it_is_assessed() -> None:
    asked: list[int] = []
    phases: list[str] = []

    def judge(genomes: Sequence[Genome], phase: str) -> list[Assessed]:
        asked.append(len(genomes))
        phases.append(phase)
        return assess(genomes, phase)

    history = run(space_of(), judge=judge, children=8)
    assert asked == [10, 8, 8, 8, 6, 8, 8, 8, 8, 8, 8, 2]  # generations end where phases do
    assert phases == ["initial"] + ["prune"] * 4 + ["merge"] * 7
    for individual in history[-1]:
        ends = len(history[individual.generation - 1]) if individual.generation else 0
        assert all(parent < ends for parent in individual.parents)


def test_keeping_every_expert_skips_pruning_and_begins_with_the_identity() -> None:
    history = run(space_of(keep=8), num_evaluations=30)
    assert history[0][0].genome == Genome.identity([8] * 4)
    assert len(history[0]) == 1
    assert [i.phase for i in history[-1]] == ["initial"] + ["merge"] * 29
    assert run(space_of(keep=8), phases="merge", num_evaluations=30) == history
    assert [len(p) for p in run(space_of(keep=8), phases="prune")] == [1]


def test_phases_can_be_run_alone() -> None:
    space = space_of()
    pruned = run(space, phases="prune", prune_until=40)[-1]
    assert {i.phase for i in pruned} == {"initial", "prune"} and len(pruned) == 40
    begin = eep.best(pruned)[0].genome
    merged = run(space, phases="merge", num_evaluations=30, initial=[begin, begin])[-1]
    assert [i.phase for i in merged] == ["initial"] + ["merge"] * 29
    assert merged[0].genome == begin
    both = run(space)[-1]
    assert both[:40] == pruned  # the ablation shares its first half


def test_merging_alone_with_fewer_experts_needs_a_beginning() -> None:
    with pytest.raises(PruneError, match="merging alone needs maps to begin with"):
        run(space_of(), phases="merge")


def test_pruning_cannot_begin_with_merged_experts() -> None:
    half = np.full((4, 8), 0.5, np.float32)
    merged = Genome((Coefficients(half, half),) * 4)
    with pytest.raises(PruneError, match="pruning phase cannot begin with merged experts"):
        run(space_of(), initial=[merged])


def test_a_router_that_chooses_groups_first_is_not_mapped() -> None:
    with pytest.raises(PruneError, match="router that first chooses among 4 groups"):
        run(Space.of(shape_of({0: 8}, num_groups=4)))


def test_given_genomes_come_first_and_random_ones_fill_up() -> None:
    seeds = [
        Genome.of_kept([kept] * 4, [8] * 4) for kept in ((0, 1, 2, 3), (3, 2, 1, 0), (4, 5, 6, 7))
    ]
    given, filled = run(space_of(), initial=seeds)[:2]
    assert [i.genome for i in given] == [seeds[0], seeds[2]]  # the second is the first again
    assert filled[:2] == given and len(filled) == 10


def test_a_space_of_six_maps_is_exhausted_and_merging_goes_on() -> None:
    population = run(space_of(layers=3, experts=4, keep=2), num_groups=1)[-1]
    pruned = [i.genome.groups[0].main for i in population if i.phase != "merge"]
    assert {frozenset(kept) for kept in pruned} == {
        frozenset(pair) for pair in itertools.combinations(range(4), 2)
    }
    assert len(pruned) == 6
    assert len(population) == 90


@FAST
@given(seed=st.integers(0, 1000), groups=st.integers(1, 6), floor=st.integers(1, 3))
def test_a_global_budget_is_kept_and_spread_by_the_search(
    seed: int, groups: int, floor: int
) -> None:
    space = space_of(budget=24, floor=floor)
    population = run(space, seed, preset="fast", num_groups=groups)[-1]
    found = space.groups(groups)
    for individual in population:
        rows = individual.genome.rows
        assert space.accepts(individual.genome, found)
        assert min(rows) >= floor
        assert sum(n * g.size for n, g in zip(rows, found, strict=True)) <= 24
    sizes = {group.size for group in found}
    if groups > 1 and len(sizes) < len(found):
        assert len({i.genome.rows for i in population}) > 1


def test_a_budget_goes_where_it_is_needed() -> None:
    """Layer 0 needs all its experts, the others only their first."""

    def judge(genomes: Sequence[Genome], _: str) -> list[Assessed]:
        return [
            Assessed((g.rows[0] + sum(0 in c.main for c in g.groups[1:])) / 20) for g in genomes
        ]

    population = run(space_of(budget=24), judge=judge, phases="prune", num_groups=6,
                     prune_until=400, num_evaluations=400)[-1]  # fmt: skip
    assert eep.best(population)[0].genome.rows[0] >= 7  # spread evenly it would have 4


@pytest.mark.parametrize("preset", ["paper", "fast"])
def test_the_search_beats_as_many_random_maps_and_merging_adds_to_it(preset: str) -> None:
    """On an MoE network whose labels its base does not match well."""
    pruned, merged, drawn = [], [], []
    for seed in range(3):
        landscape, space = Landscape(seed, layers=4), space_of(4, top_k=2)
        groups = space.groups(4)

        def judge(
            genomes: Sequence[Genome], _: str, scape: Landscape = landscape, parts: Any = groups
        ) -> list[Assessed]:
            return scape.assess(genomes, parts)

        numbers: dict[str, Any] = {"num_evaluations": 120, "num_initial": None, "prune_until": None}
        population = run(space, seed, judge, preset=preset, **numbers)[-1]
        before = [i for i in population if i.phase != "merge"]
        pruned.append(eep.best(before)[0].fitness)
        merged.append(eep.best(population)[0].fitness)
        only = run(space, seed, judge, num_initial=120, num_evaluations=120)[-1]
        drawn.append(eep.best(only)[0].fitness)
    assert np.mean(merged) > np.mean(drawn) + 0.01
    assert np.mean(merged) > np.mean(pruned)
