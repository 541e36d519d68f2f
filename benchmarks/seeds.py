"""Genomes of one-shot methods to begin a search with."""

from __future__ import annotations

import random

from offline.engines.base import Engine
from offline.fitness.objective import Objective
from offline.maps.depth_groups import Groups
from offline.maps.genome import Genome
from offline.maps.map_entries import kept_genome
from offline.maps.map_space import Space
from offline.methods.baselines import ONE_SHOT, OneShotInput


def seeds(engine: Engine, space: Space, objective: Objective, groups: Groups) -> list[Genome]:
    """Return what frequency and soft activation keep on the search items of the first task."""
    engine.apply(None)
    use = engine.usage(objective.tasks[0].task, "search", objective.items["search"])
    genomes = []
    for name in ("frequency", "soft_activation"):
        kept = ONE_SHOT[name].keep(space, OneShotInput(use), random.Random(0), groups)
        genomes.append(kept_genome(kept, groups))
    return genomes
