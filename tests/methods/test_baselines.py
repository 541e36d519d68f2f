"""One-shot methods, each by layer, by depth group and under a global budget."""

from __future__ import annotations

import itertools
import random
from collections import Counter

import numpy as np
import pytest

from offline.engines.base import ExpertUse
from offline.maps.depth_groups import total_kept
from offline.maps.genome import Genome
from offline.methods.baselines import (
    ONE_SHOT,
    OneShotInput,
    most_used,
    naee,
    random_kept,
    soft_activation,
)
from tests.maps.landscape import space_of
from vllm_moe_prune.errors import PruneError

USAGE = {0: [5, 90, 7, 90, 1, 8, 30, 2], 1: [8, 7, 6, 5, 4, 3, 2, 1]}


def test_the_most_used_experts_stay_in_order_of_id() -> None:
    assert most_used(space_of(layers=2), USAGE) == {0: (1, 3, 5, 6), 1: (0, 1, 2, 3)}


def test_a_tie_keeps_the_lower_id() -> None:
    assert most_used(space_of(layers=1, keep=2), {0: [3, 3, 3, 3, 0, 0, 0, 9]}) == {0: (0, 7)}


def test_the_highest_accumulated_scores_stay() -> None:
    scores = {0: [0.5, 0.1, 3.0, 0.2, 0.9, 0.3, 0.05, 2.0]}
    assert soft_activation(space_of(layers=1, keep=3), scores) == {0: (2, 4, 7)}


@pytest.mark.parametrize("bad", [-1.0, float("nan")])
def test_scores_that_make_no_sense_are_refused(bad: float) -> None:
    with pytest.raises(PruneError, match="negative or not finite"):
        soft_activation(space_of(layers=1), {0: [bad, 1, 1, 1, 1, 1, 1, 1]})


def test_a_group_keeps_what_its_layers_use_most_together() -> None:
    space = space_of(layers=2, keep=2)
    usage = {0: [60, 40, 0, 0, 0, 0, 0, 0], 1: [0, 40, 60, 0, 0, 0, 0, 0]}
    assert most_used(space, usage) == {0: (0, 1), 1: (1, 2)}
    assert most_used(space, usage, space.groups(1)) == {0: (0, 1), 1: (0, 1)}  # 80, then a tie


def test_a_budget_goes_to_the_layers_whose_dropped_experts_are_used_most() -> None:
    even, peaked = [10] * 8, [73, 1, 1, 1, 1, 1, 1, 1]
    space = space_of(layers=2, budget=8, floor=2)
    kept = most_used(space, {0: peaked, 1: even})
    assert kept == {0: (0, 1), 1: (0, 1, 2, 3, 4, 5)}
    assert most_used(space_of(layers=2, budget=8), {0: peaked, 1: even})[0] == (0,)


def test_what_groups_cannot_spend_stays_unspent() -> None:
    space = space_of(layers=7, budget=25)
    groups = space.groups(3)  # of 2, 2 and 3 layers
    kept = most_used(space, {layer: list(range(8)) for layer in range(7)}, groups)
    rows = [len(kept[group.layers[0]]) for group in groups]
    assert 25 - 1 <= total_kept(rows, groups) <= 25
    assert space.accepts(Genome.of_kept([kept[g.layers[0]] for g in groups], [8] * 3), groups)


def test_naee_keeps_the_subset_with_the_least_discrepancy() -> None:
    subsets = list(itertools.combinations(range(4), 2))
    space = space_of(layers=2, experts=4, keep=2)
    losses = {
        0: {kept: float(kept != (1, 3)) for kept in subsets},
        1: {kept: 0.5 * (kept != (0, 2)) for kept in subsets},
    }
    assert naee(space, losses) == {0: (1, 3), 1: (0, 2)}
    assert naee(space, losses, space.groups(1)) == {0: (1, 3), 1: (1, 3)}


def test_random_maps_keep_every_expert_equally_often() -> None:
    space, rng = space_of(layers=2, keep=2), random.Random(0)
    draws = [random_kept(space, rng) for _ in range(2000)]
    for layer in space.layers:
        counts = Counter(expert for kept in draws for expert in kept[layer])
        assert set(counts) == set(range(8))
        assert all(abs(count - 500) < 100 for count in counts.values())  # 5 standard deviations
        assert all(kept[layer][0] < kept[layer][1] for kept in draws)
    assert any(kept[0] != kept[1] for kept in draws)


def test_the_same_seed_draws_the_same_random_map() -> None:
    space = space_of()
    assert random_kept(space, random.Random(1)) == random_kept(space, random.Random(1))


def input_of(layers: int) -> OneShotInput:
    rng = np.random.default_rng(0)
    use = {
        layer: ExpertUse(tokens=rng.integers(1, 99, 8), scores=rng.random(8))
        for layer in range(layers)
    }
    losses = {
        layer: {kept: float(rng.random()) for kept in itertools.combinations(range(8), 4)}
        for layer in range(layers)
    }
    return OneShotInput(use, losses)


@pytest.mark.parametrize("name", ONE_SHOT)
@pytest.mark.parametrize("budget", [None, 24])
def test_every_one_shot_method_gives_genomes_that_a_search_can_begin_with(
    name: str, budget: int | None
) -> None:
    space, evidence = space_of(budget=budget), input_of(6)
    method = ONE_SHOT[name]
    for groups in (space.groups(3), space.groups()):
        kept = method.keep(space, evidence, random.Random(0), groups)
        genome = Genome.of_kept([kept[g.layers[0]] for g in groups], [8] * len(groups))
        assert space.accepts(genome, groups)
        assert all(kept[layer] == kept[g.layers[0]] for g in groups for layer in g.layers)
    assert set(method.keep(space, evidence, random.Random(0), None)) == set(range(6))


def test_methods_say_what_they_need() -> None:
    assert {name: set(method.needs) for name, method in ONE_SHOT.items()} == {
        "random": set(),
        "frequency": {"use"},
        "soft_activation": {"use"},
        "naee": {"discrepancies"},
    }
    space, evidence = space_of(), input_of(6)
    assert evidence.use is not None
    tokens = {layer: use.tokens.tolist() for layer, use in evidence.use.items()}
    chosen = ONE_SHOT["frequency"].keep(space, evidence, random.Random(0), None)
    assert chosen == most_used(space, tokens)
