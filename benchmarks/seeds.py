"""Genomes of one-shot methods to begin a search with."""

from __future__ import annotations

import random

from offline.engines.base import Engine
from offline.fitness.objective import Objective
from offline.fitness.usage import usage_of
from offline.maps.depth_groups import Groups
from offline.maps.genome import Genome
from offline.maps.map_entries import kept_genome
from offline.maps.map_space import Space
from offline.methods.baselines import BY_USE, ONE_SHOT, OneShotInput


def seeds(engine: Engine, space: Space, objective: Objective, groups: Groups) -> list[Genome]:
    """Return what frequency and soft activation keep on the search items of its tasks."""
    use = usage_of(engine, objective)
    genomes = []
    for name in BY_USE:
        kept = ONE_SHOT[name].keep(space, OneShotInput(use), random.Random(0), groups)
        genomes.append(kept_genome(kept, groups))
    return genomes
