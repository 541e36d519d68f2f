"""`Search`: EEP's search over an assessor, generation by generation."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field

from offline.fitness.assessor import Assessor
from offline.fitness.candidate import Assessment
from offline.maps.depth_groups import Groups
from offline.maps.genome import Genome
from offline.maps.map_space import Space
from offline.methods import eep
from vllm_moe_prune.provenance import Provenance
from vllm_moe_prune.routing_map import RoutingMap


@dataclass(slots=True)
class Search:
    """One search; ``candidates`` are all that it assessed, in the population's order."""

    space: Space
    settings: eep.EepSettings
    assessor: Assessor
    provenance: Provenance
    candidates: list[Assessment] = field(default_factory=list)

    @property
    def groups(self) -> Groups:
        """Return the depth groups that share matrices."""
        return self.space.groups(self.settings.num_groups)

    def run(self, rng: random.Random, initial: Sequence[Genome] = ()) -> eep.Population:
        """Run all phases and return the population.

        :param initial: genomes to begin with
        :raises PruneError: as `eep.search` and the assessor do
        """
        population: eep.Population = []
        found = eep.search(self.space, self.settings, self._assess, rng, initial=initial)
        for population in found:  # noqa: B007  # one list that grows
            pass
        return population

    def map_of(self, genome: Genome) -> RoutingMap:
        """Return a candidate's map."""
        return self.space.genome_map(genome, self.groups, self.provenance)

    @property
    def best(self) -> Assessment | None:
        """Return the best candidate seen on all items, the first of equals."""
        complete = [one for one in self.candidates if one.complete]
        return max(complete, key=lambda one: one.fitness, default=None)

    def _assess(self, genomes: Sequence[Genome], phase: eep.Phase) -> list[eep.Assessed]:
        generation = self.candidates[-1].generation + 1 if self.candidates else 0
        found = self.assessor.assess(
            [self.map_of(genome) for genome in genomes],
            self.best,
            phase=phase,
            generation=generation,
        )
        self.candidates += found
        return [eep.Assessed(one.fitness, one.complete) for one in found]
