"""Who may be a parent or a finalist."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from offline.maps.genome import Genome
from offline.methods import eep
from offline.methods.eep import Assessed, EepSettings, Individual
from tests.maps.landscape import space_of


def parents_of(fitness: Sequence[float], threshold: float, rank: int) -> set[int]:
    """Who can be a parent, over many draws."""
    space = space_of()
    groups = space.groups(1)
    genome = Genome.of_kept([(0, 1, 2, 3)], [8])
    population = [Individual(genome, Assessed(f, complete=f != 9), "initial", 0) for f in fitness]
    draw = np.random.default_rng(0)
    breeder = eep._Breeder(groups, space, EepSettings(), draw)
    return {i for _ in range(50) for i in breeder._parents(population, threshold, rank)}


def test_parents_are_within_the_threshold_but_at_least_so_many() -> None:
    fitness = [0.50, 0.47, 0.46, 0.30, 0.20]
    assert parents_of(fitness, 0.03, 0) == {0, 1}
    assert parents_of(fitness, 0.03, 3) == {0, 1, 2}
    assert parents_of(fitness, 0.0, 0) == {0}
    assert parents_of(fitness, 0.0, 9) == {0, 1, 2, 3, 4}


def test_ties_are_put_in_random_order_before_the_rank_is_cut() -> None:
    assert parents_of([0.5, 0.4, 0.4, 0.4, 0.1], 0.0, 2) == {0, 1, 2, 3}


def test_what_racing_dropped_or_has_no_number_is_neither_parent_nor_finalist() -> None:
    assert parents_of([0.5, 9, 0.4, float("nan"), float("-inf")], 0.0, 9) == {0, 2}
    genome = Genome.of_kept([(0, 1)], [8])
    made = [
        Individual(genome, Assessed(fitness, complete), "initial", 0)
        for fitness, complete in ((0.5, True), (0.9, False), (float("nan"), True), (0.7, True))
    ]
    assert [i.fitness for i in eep.best(made, 5)] == [0.7, 0.5]
