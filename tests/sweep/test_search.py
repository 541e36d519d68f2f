"""What a sweep's search begins with beside the choices: what the tasks' items use most."""

from __future__ import annotations

from types import MappingProxyType

import numpy as np

from offline.engines.base import ExpertUse
from offline.fitness.usage import Usage
from offline.maps.map_space import Kept, Space
from offline.sweep.search import _by_use
from tests.maps.landscape import space_of
from tests.sample_shapes import shape_of


def use(*tokens: int) -> ExpertUse:
    """Scores name the experts in the other order."""
    return ExpertUse(np.array(tokens), np.array(tokens[::-1], np.float64))


def kept(space: Space, usage: Usage) -> list[list[Kept]]:
    groups = space.groups()
    genomes = _by_use(space, usage, groups)
    assert all(space.accepts(genome, groups) for genome in genomes)
    return [[tuple(sorted(one.main)) for one in genome.groups] for genome in genomes]


def test_experts_are_spread_by_their_use_and_evenly() -> None:
    """By their shares of the layer's tokens, then of its scores."""
    usage = {0: use(97, 1, 1, 1), 1: use(10, 20, 30, 40)}
    assert kept(space_of(2, 4, budget=4, floor=1), usage) == [
        [(0,), (1, 2, 3)],
        [(3,), (0, 1, 2)],
        [(0, 1), (2, 3)],
        [(0, 3), (0, 1)],
    ]


def test_each_of_a_routers_groups_keeps_as_many() -> None:
    shape = shape_of(MappingProxyType({0: 8, 1: 8}), 1, num_groups=2)
    usage = {0: use(90, 80, 70, 60, 4, 3, 2, 1), 1: use(*range(8))}
    for layers in kept(Space.of(shape, budget=12), usage):
        for ids in layers:
            assert 2 * sum(i < 4 for i in ids) == len(ids) >= 4
