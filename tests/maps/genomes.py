"""Hypothesis strategies: spaces with any budget, and genomes of any kind that fit them;
maps read back into genomes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from hypothesis import strategies as st

from offline.maps.depth_groups import Groups
from offline.maps.genome import Coefficients, Genome
from offline.maps.map_space import Space
from offline.methods.eep_operators import random_genome
from tests.maps.landscape import space_of
from vllm_moe_prune.routing_map import RoutingMap


@dataclass(frozen=True)
class Case:
    """A space, its groups, a genome in it and a generator for what follows."""

    space: Space
    groups: Groups
    genome: Genome
    draw: np.random.Generator


@st.composite
def cases(draw: st.DrawFn, *, one_hot: bool = False) -> Case:
    """Draw a space with a uniform or a global budget and a random genome in it.

    Without ``one_hot`` some groups get noise on either matrix, rows of another group's, or an
    expert twice.
    """
    layers = draw(st.integers(1, 9))
    experts = draw(st.integers(2, 8))
    top_k = draw(st.integers(1, 2))
    keep = draw(st.integers(top_k, experts))
    budget = draw(st.none() | st.integers(layers * max(top_k, 2), layers * experts))
    floor = 2 if budget is not None else 1
    space = space_of(layers, experts, keep, top_k=top_k, budget=budget, floor=floor)
    groups = space.groups(draw(st.integers(1, layers)))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    genome = random_genome(groups, space.budget, rng)
    if not one_hot:
        genome = Genome(tuple(_disturbed(group, rng) for group in genome.groups))
    return Case(space, groups, genome, rng)


def read_back(routing_map: RoutingMap, groups: Groups) -> Genome:
    """The genome that a map was made of, from the map's matrices."""
    layers = routing_map.by_layer()
    assert sorted(layers) == sorted(layer for group in groups for layer in group.layers)
    found = []
    for group in groups:
        first, *others = [
            Coefficients(routing_map.expert_matrix(entry), routing_map.router_matrix(entry))
            for entry in (layers[layer] for layer in group.layers)
        ]
        assert all(Genome((other,)) == Genome((first,)) for other in others)
        found.append(first)
    return Genome(tuple(found))


def _disturbed(group: Coefficients, rng: np.random.Generator) -> Coefficients:
    experts, router = group.experts.copy(), group.router.copy()
    kind = rng.integers(5)
    if kind == 0:  # as it is
        pass
    elif kind == 1:  # a crossover can select an expert twice
        experts[rng.integers(group.rows)] = experts[0]
    elif kind == 2:  # ... and give an expert another one's router row
        router = router[rng.permutation(group.rows)]
    else:
        router += rng.normal(0, 0.1, router.shape).astype(np.float32)
        if kind == 4:
            experts += rng.normal(0, 0.1, experts.shape).astype(np.float32)
    return Coefficients(experts, router)
