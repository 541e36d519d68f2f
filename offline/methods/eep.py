"""EEP's pruning phase: a gradient-free evolutionary search over one-hot maps.

Source: arXiv 2407.00945, algorithm 1 and appendix A.1; the numbers are those of the released
search (imagination-research/EEP). Layers are split by depth into groups that share one set of
kept experts. The population only grows: every evaluated individual stays a possible parent.

One deviation: a child that equals an individual of the population is drawn again. With the
released rates about half of all children are copies, and evaluating a copy teaches nothing.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from pydantic import BaseModel, ConfigDict, Field

from offline.methods.space import Kept, Space

Genome = tuple[Kept, ...]
Fitness = Callable[[Genome], float]

_MAX_DRAWS = 1000


class EepSettings(BaseModel):
    """The pruning phase's numbers; the defaults are the released ones."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    num_groups: int = Field(default=4, ge=1, description="depth groups that share kept experts")
    num_initial: int = Field(default=30, ge=1, description="random individuals at the start")
    num_evaluations: int = Field(default=100, ge=1, description="individuals evaluated in all")
    group_probability: float = Field(default=0.25, gt=0, le=1)
    row_probability: float = Field(default=0.15, gt=0, le=1)
    parent_threshold: float = Field(
        default=0.03, ge=0, description="a parent's fitness may be this much below the best"
    )


@dataclass(frozen=True, slots=True)
class Individual:
    """A genome (kept experts per group, one row each) and its fitness in 0..1."""

    genome: Genome
    fitness: float


def depth_groups(layers: tuple[int, ...], num_groups: int) -> tuple[tuple[int, ...], ...]:
    """Split layers by depth into equal groups; the last one takes the remainder."""
    num_groups = min(num_groups, len(layers))
    size = len(layers) // num_groups
    starts = [i * size for i in range(num_groups)] + [len(layers)]
    return tuple(layers[a:b] for a, b in itertools.pairwise(starts))


def kept_by_layer(genome: Genome, groups: tuple[tuple[int, ...], ...]) -> dict[int, Kept]:
    """Expand a genome to the kept experts of every layer."""
    return {layer: kept for group, kept in zip(groups, genome, strict=True) for layer in group}


def search(
    space: Space, settings: EepSettings, fitness: Fitness, rng: random.Random
) -> Iterator[list[Individual]]:
    """Run the pruning phase; yields the population after each evaluation.

    All randomness comes from ``rng``, so a run that is repeated with the same seed and the same
    fitness values goes the same way: resuming is repeating with remembered values.

    :param fitness: genome -> score, higher is better
    """
    groups = depth_groups(space.layers, settings.num_groups)
    sizes = [space.num_experts[group[0]] for group in groups]
    population: list[Individual] = []
    known: set[Genome] = set()
    while len(population) < settings.num_evaluations:
        for _ in range(_MAX_DRAWS):
            if len(population) < settings.num_initial:
                genome = _random_genome(sizes, space.keep, rng)
            else:
                genome = _mutated(_parent(population, settings, rng).genome, sizes, settings, rng)
            if _unordered(genome) not in known:
                break
        else:
            return  # every map that can be reached has been evaluated
        known.add(_unordered(genome))
        population.append(Individual(genome, fitness(genome)))
        yield population


def best(population: list[Individual], count: int = 1) -> list[Individual]:
    """Return the fittest, best first; ties go to the one found first."""
    return sorted(population, key=lambda individual: -individual.fitness)[:count]


def _random_genome(sizes: list[int], keep: int, rng: random.Random) -> Genome:
    return tuple(tuple(sorted(rng.sample(range(size), keep))) for size in sizes)


def _parent(population: list[Individual], settings: EepSettings, rng: random.Random) -> Individual:
    """Choose uniformly among those within the threshold of the best."""
    least = max(individual.fitness for individual in population) - settings.parent_threshold
    return rng.choice([i for i in population if i.fitness >= least - 1e-12])


def _mutated(genome: Genome, sizes: list[int], settings: EepSettings, rng: random.Random) -> Genome:
    """Move rows of some groups to experts that the group does not keep yet."""
    active: list[bool] = []
    while not any(active):
        active = [rng.random() < settings.group_probability for _ in genome]
    child = []
    for kept, is_active, size in zip(genome, active, sizes, strict=True):
        rows = list(kept)
        for row in range(len(rows)):
            if is_active and len(rows) < size and rng.random() < settings.row_probability:
                rows[row] = rng.choice([e for e in range(size) if e not in rows])
        child.append(tuple(rows))
    return tuple(child)


def _unordered(genome: Genome) -> Genome:
    """The order of kept experts changes nothing that a model computes."""
    return tuple(tuple(sorted(kept)) for kept in genome)
