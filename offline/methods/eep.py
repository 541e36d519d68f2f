"""EEP: a gradient-free evolutionary search over routing maps, pruning first, then merging.

Source: arXiv 2407.00945, algorithm 1 and appendix A.1; the released search gives the numbers
(imagination-research/EEP). Layers are split by depth into groups that share one W_EM and one W_RM.
The population only grows: every evaluated individual stays a possible parent.

The search goes by generations. A generation is drawn from the population as it was when it began,
so the outcome does not depend on how many candidates are evaluated at the same time.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from offline.maps.depth_groups import Groups, depth_groups
from offline.maps.genome import Genome
from offline.maps.map_space import Space
from offline.methods import eep_operators as variation
from offline.methods.eep_settings import PRESETS, EepSettings, settings_of
from vllm_moe_prune.errors import PruneError

__all__ = [
    "PRESETS", "Assess", "Assessed", "EepSettings", "Genome", "Individual", "Population", "best",
    "depth_groups", "search", "settings_of",
]  # fmt: skip

Phase = Literal["initial", "prune", "merge"]

_MAX_DRAWS = 1000
_TOLERANCE = 1e-12  # fitness values are means, whose last bits depend on how they were summed


@dataclass(frozen=True, slots=True)
class Assessed:
    """A genome's fitness, higher is better; not ``complete`` if racing dropped it on the way."""

    fitness: float
    complete: bool = True


@dataclass(frozen=True, slots=True)
class Individual:
    """A genome, what it is worth, and where it comes from.

    ``parents`` are places in the population: none for the initial ones, two after a crossover.
    """

    genome: Genome
    assessed: Assessed
    phase: Phase
    generation: int
    parents: tuple[int, ...] = ()

    @property
    def fitness(self) -> float:
        """Higher is better."""
        return self.assessed.fitness

    @property
    def is_eligible(self) -> bool:
        """Whether it may be a parent or a finalist: seen on all items, with a finite fitness."""
        return self.assessed.complete and math.isfinite(self.fitness)


Population = list[Individual]
Assess = Callable[[Sequence[Genome], Phase], Sequence[Assessed]]


@dataclass(frozen=True, slots=True)
class _Child:
    genome: Genome
    parents: tuple[int, ...] = ()


def search(
    space: Space,
    settings: EepSettings,
    assess: Assess,
    rng: random.Random,
    *,
    initial: Sequence[Genome] = (),
) -> Iterator[Population]:
    """Run the phases; yields the population, the same growing list, after each generation.

    The first generation is ``initial``, the second random genomes up to ``num_initial``. With every
    expert kept (E' = E) the identity and ``initial`` are all, and the pruning phase falls away. All
    chance comes from ``rng``: repeated with the same seed and the same fitness values, a search
    goes the same way, so resuming is repeating with remembered values.

    :param assess: the genomes of a generation and its phase -> what each is worth, in order
    :param initial: genomes to begin with, such as those of one-shot methods
    :raises PruneError: if the phases cannot be run in this space, before anything is assessed
    """
    groups = space.groups(settings.num_groups)
    initial = list({genome.key: genome for genome in reversed(initial)}.values())[::-1]
    assert all(space.accepts(genome, groups) for genome in initial), "initial genomes do not fit"
    check_phases(space, settings, has_initial=bool(initial))
    if settings.phases != "merge" and not all(g.is_one_hot and g.is_tied for g in initial):
        raise PruneError(
            "the pruning phase cannot begin with merged experts", hint="run the merging phase only"
        )
    breeder = _Breeder(groups, space, settings, np.random.default_rng(rng.getrandbits(128)))
    population: Population = []
    known: set[str] = set()
    generation = 0
    for phase, until in _schedule(space, settings, len(initial)):
        while len(population) < until:
            size = until - len(population)
            if phase != "initial":
                size = min(size, settings.children)
            brood = breeder.brood(phase, population, known, size, initial)
            if not brood:
                break  # every genome that can be reached has been evaluated
            results = assess([child.genome for child in brood], phase)
            population += [
                Individual(child.genome, result, phase, generation, child.parents)
                for child, result in zip(brood, results, strict=True)
            ]
            generation += 1
            yield population


def best(population: Population, count: int = 1) -> Population:
    """Return the fittest that are eligible, best first; ties go to the one found first."""
    eligible = [individual for individual in population if individual.is_eligible]
    return sorted(eligible, key=lambda individual: -individual.fitness)[:count]


def check_phases(space: Space, settings: EepSettings, *, has_initial: bool) -> None:
    """Refuse phases that cannot be run in a space, or that would never begin.

    :raises PruneError: naming the phase and what to do instead
    """
    total, until = settings.num_evaluations, settings.prune_until
    if settings.phases == "both" and not space.keeps_all and until >= total > 1:
        raise PruneError(
            f"{until} evaluations before merging begins are all of {total}",
            hint="a lower --prune-evaluations, more --evaluations, or --phases prune",
        )
    if settings.phases != "merge" and settings.num_initial > total:
        raise PruneError(f"--initial {settings.num_initial} is more than {total} evaluations")
    if settings.phases == "merge" and not space.keeps_all and not has_initial:
        raise PruneError(
            "merging alone needs maps to begin with where experts are dropped",
            hint="run both phases, --seeding, or keep all experts",
        )
    if settings.phases != "prune" and space.shape.num_groups > 1:
        raise PruneError(
            f"a router that first chooses among {space.shape.num_groups} groups cannot be mapped",
            hint="run the pruning phase only",
        )
    if settings.phases != "prune" and not space.shape.mappable:
        raise PruneError(
            f"the router of a {space.shape.model_type} model cannot be mapped, as merging would",
            hint="run the pruning phase only: --phases prune",
        )


def _schedule(space: Space, settings: EepSettings, given: int) -> list[tuple[Phase, int]]:
    """Return the phases, each with the size of the population at its end."""
    total = settings.num_evaluations
    prunes = settings.phases != "merge" and not space.keeps_all
    given += space.keeps_all
    first = max(settings.num_initial, given) if prunes else given
    # What is given is a generation of its own: random maps can then race against it.
    schedule: list[tuple[Phase, int]] = [("initial", min(given, total))] if given else []
    schedule.append(("initial", min(first, total)))
    if prunes:
        schedule.append(("prune", min(settings.prune_until, total)))
    if settings.phases != "prune":
        schedule.append(("merge", total))
    return schedule


@dataclass(frozen=True, slots=True)
class _Breeder:
    """Draws generations of new genomes."""

    groups: Groups
    space: Space
    settings: EepSettings
    draw: np.random.Generator

    def brood(
        self,
        phase: Phase,
        population: Population,
        known: set[str],
        size: int,
        initial: Sequence[Genome],
    ) -> list[_Child]:
        """Draw up to ``size`` new genomes and note them in ``known``; fewer where none are left.

        The initial genomes always differ; later ones may come again if `skip_known` is off.
        """
        brood: list[_Child] = []
        given = [_Child(genome) for genome in initial] if phase == "initial" else []
        if phase == "initial" and self.space.keeps_all:
            given.insert(0, _Child(Genome.identity([g.num_experts for g in self.groups])))
        may_repeat = phase != "initial" and not self.settings.skip_known
        for _ in range(size):
            for _ in range(_MAX_DRAWS):
                child = given.pop(0) if given else self._child(phase, population)
                key = child.genome.key
                if may_repeat or key not in known:
                    break
            else:
                break
            known.add(key)
            brood.append(child)
        return brood

    def _child(self, phase: Phase, population: Population) -> _Child:
        settings, draw = self.settings, self.draw
        if phase == "initial":
            return _Child(variation.random_genome(self.groups, self.space.budget, draw))
        active = variation.draw_active(
            len(self.groups),
            settings.expert_group_probability,
            settings.router_group_probability,
            draw,
        )
        child = self._before_mutation(phase, population, active)
        genome = child.genome
        if phase == "prune":
            router = self.space.router_groups
            genome = variation.swap_experts(genome, active, settings.swap_probability, draw, router)
        else:
            genome = variation.add_noise(
                genome, active, settings.noise_probability, settings.noise_scale, draw
            )
        if self.space.budget is not None and draw.random() < settings.move_probability:
            genome = variation.move_budget(genome, self.groups, draw)
        if draw.random() < settings.normalise_probability:
            genome = variation.normalise_rows(genome)
        return _Child(genome, child.parents)

    def _before_mutation(
        self, phase: Phase, population: Population, active: variation.Active
    ) -> _Child:
        """Copy one parent, or cross two where the phase has crossover and there are two."""
        settings, draw = self.settings, self.draw
        crosses = phase == "merge" or settings.crossover_phases == "both"
        if crosses and draw.random() < settings.crossover_probability:
            parents = self._parents(
                population, settings.crossover_threshold, settings.crossover_rank
            )
            if len(parents) > 1:
                pair = tuple(int(i) for i in draw.choice(parents, 2, replace=False))
                front, back = (population[i].genome for i in pair)
                return _Child(self._crossed(phase, front, back, active), pair)
        parents = self._parents(population, settings.mutation_threshold, settings.mutation_rank)
        parent = parents[draw.integers(len(parents))]
        return _Child(population[parent].genome, (parent,))

    def _crossed(
        self, phase: Phase, front: Genome, back: Genome, active: variation.Active
    ) -> Genome:
        if self.settings.align_rows:
            back = variation.aligned(back, front)
        share, router = self.settings.from_front_probability, self.space.router_groups
        if phase == "prune":
            return variation.cross_kept(front, back, active, share, self.draw, router)
        return variation.cross_rows(front, back, active, share, self.draw)

    def _parents(self, population: Population, threshold: float, rank: int) -> list[int]:
        """Return who is within the threshold of the best, but at least the first ``rank``.

        Ties are put in random order first, so that the rank favours none of them.
        """
        eligible = [i for i, individual in enumerate(population) if individual.is_eligible]
        assert eligible, "racing dropped every candidate"
        order = [eligible[i] for i in self.draw.permutation(len(eligible))]
        order.sort(key=lambda i: -population[i].fitness)
        least = population[order[0]].fitness - threshold - _TOLERANCE
        within = sum(population[i].fitness >= least for i in order)
        return order[: max(within, rank)]
