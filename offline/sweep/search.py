"""EEP's search in each size of a sweep, from the best choices of that size on."""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import cast

from offline.build.build import plan_build
from offline.fitness.assessor import Assessor
from offline.fitness.candidate import Assessment
from offline.fitness.usage import Usage
from offline.maps.depth_groups import Groups
from offline.maps.genome import Genome
from offline.maps.map_entries import kept_genome
from offline.maps.map_space import Kept, Space
from offline.maps.moe_shape import MoeShape
from offline.maps.router_kind import RouterKind
from offline.methods import eep
from offline.methods.baselines import by_use
from offline.methods.search import Search
from offline.sweep.choices import Choice, Choices
from offline.sweep.settings import SweepSettings
from vllm_moe_prune.checkpoint import Checkpoint
from vllm_moe_prune.provenance import Provenance

_SEEDS = 8  # choices that a search begins with, at most


@dataclass(frozen=True, slots=True)
class Start:
    """What a search may begin with: choices that only drop, with one number of experts, of active
    ones, and one kind of router. ``name`` will be that of its best."""

    name: str
    router: RouterKind
    choices: tuple[Choice, ...]

    def seeds(self, raced: Mapping[str, Assessment]) -> list[Choice]:
        """Return the best of those that were seen on all items.

        :param raced: how choices did, by name
        """
        complete = [one for one in self.choices if raced[one.name].complete]
        return sorted(complete, key=lambda one: -raced[one.name].fitness)[:_SEEDS]


def starts_of(choices: Choices) -> list[Start]:
    """Return a start for each size and router, in the order of the choices."""
    total = sum(choices.shape.num_experts.values())
    found: dict[tuple[str, RouterKind], list[Choice]] = {}
    for one in choices.found:
        layers = one.routing_map.layers
        if one.experts == total or any(
            layer.experts.kept is None or layer.substituted for layer in layers
        ):
            continue
        router = cast(RouterKind, one.plan.get("router", "auto"))
        name = f"search-{one.experts}-of-{total}-top-{one.active:g}"
        name += "" if router == "auto" else f"-{router}"
        found.setdefault((name, router), []).append(one)
    return [Start(*key, tuple(ones)) for key, ones in found.items()]


def search_on(
    start: Start,
    seeds: Sequence[Choice],
    base: Checkpoint,
    shape: MoeShape,
    usage: Usage,
    settings: SweepSettings,
    assessor: Assessor,
    made: Provenance,
) -> tuple[Choice, Assessment] | None:
    """Search, and return the best that was found and what it is worth; None if it is a seed.

    :param shape: the base's
    :param usage: of the base's experts on the tasks' search items
    :param made: provenance of the maps
    :raises PruneError: as `Assessor.assess` does, or if what was found could not be built
    """
    layers = seeds[0].routing_map.layers
    top_k = {layer.layer: layer.top_k for layer in layers}
    space = Space.of(shape, top_k=top_k, budget=seeds[0].experts, router=start.router)
    groups = space.groups()
    given = _distinct(kept_genome(_kept(seed), groups) for seed in seeds)
    initial = _distinct([*given, *_by_use(space, usage, groups)])
    total = len(given) + settings.search
    initial = initial[:total]
    own = eep.settings_of(
        "fast",
        phases="prune",
        num_groups=len(layers),
        num_evaluations=total,
        num_initial=len(initial),
    )
    search = Search(space, own, assessor, made)
    population = search.run(random.Random(f"{settings.seed} {start.name}"), initial)
    (best,) = eep.best(population)
    place = population.index(best)
    if place < len(given):
        return None
    routing_map = search.map_of(best.genome)
    size = plan_build(base, routing_map, mtp=settings.mtp).num_bytes
    choice = Choice(start.name, {"search": settings.search}, routing_map, size)
    return choice, search.candidates[place]


def _kept(choice: Choice) -> dict[int, Kept]:
    return {layer.layer: layer.experts.kept or () for layer in choice.routing_map.layers}


def _by_use(space: Space, usage: Usage, groups: Groups) -> list[Genome]:
    """Return what is kept by the use of experts, spread over the layers and as much of each.

    Choices go by the text that was scored; these see the tasks, as the first maps of EEP do.
    """
    even = replace(space, budget=None, keep=space.even_counts())
    return [*by_use(space, usage, groups), *by_use(even, usage, even.groups())]


def _distinct(genomes: Iterable[Genome]) -> list[Genome]:
    return list({genome.key: genome for genome in genomes}.values())
