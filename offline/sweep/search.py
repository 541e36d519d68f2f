"""EEP's search in each size of a sweep, which begins with the best choices of that size."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence

from offline.build.build import plan_build
from offline.fitness.assessor import Assessor
from offline.fitness.candidate import Assessment
from offline.maps.genome import Genome
from offline.maps.map_entries import kept_genome
from offline.maps.map_space import Space
from offline.maps.moe_shape import MoeShape
from offline.methods import eep
from offline.methods.search import Search
from offline.sweep.choices import Choice
from offline.sweep.settings import SweepSettings
from vllm_moe_prune.checkpoint import Checkpoint
from vllm_moe_prune.provenance import Provenance

_SEEDS = 8  # choices that a search begins with, at most


def starts_of(choices: Sequence[Choice], base: Checkpoint) -> dict[str, list[Choice]]:
    """Return what a search can begin with, by the name that its best will have.

    These are the choices that only drop experts, in groups of as many experts and active ones.
    """
    total, found = sum(base.expert_counts().values()), dict[str, list[Choice]]()
    for one in choices:
        layers = one.routing_map.layers
        if one.experts == total or any(
            layer.experts.kept is None or layer.substituted for layer in layers
        ):
            continue
        name = f"search-{one.experts}-of-{total}-top-{one.active:g}"
        found.setdefault(name, []).append(one)
    return found


def searched(
    starts: Mapping[str, Sequence[Choice]],
    raced: Mapping[str, Assessment],
    base: Checkpoint,
    settings: SweepSettings,
    assessor: Assessor,
    made: Provenance,
) -> Iterator[tuple[Choice, Assessment]]:
    """Search from each start; gives the best of each search that is better than all it began with.

    :param raced: how the choices did, by name; those that were dropped early are no parents
    :param made: provenance of the maps
    :raises PruneError: as `Assessor.assess` does
    """
    for name, choices in starts.items():
        complete = [one for one in choices if raced[one.name].complete]
        seeds = sorted(complete, key=lambda one: -raced[one.name].fitness)[:_SEEDS]
        if not seeds:
            continue
        search = _search(seeds, base, settings, assessor, made)
        population = search.run(random.Random(f"{settings.seed} {name}"), _genomes(seeds, search))
        (best,) = eep.best(population)
        if best.phase != "initial":
            routing_map = search.map_of(best.genome)
            size = plan_build(base, routing_map, mtp=settings.mtp).num_bytes
            choice = Choice(name, {"search": settings.search}, routing_map, size)
            yield choice, search.candidates[population.index(best)]


def _search(
    seeds: Sequence[Choice],
    base: Checkpoint,
    settings: SweepSettings,
    assessor: Assessor,
    made: Provenance,
) -> Search:
    """Return the search of the seeds' size: as many experts in all, every layer by itself."""
    shape, layers = MoeShape.of(base), seeds[0].routing_map.layers
    space = Space.of(
        shape,
        top_k={layer.layer: layer.top_k for layer in layers},
        budget=seeds[0].experts,
        router=settings.router,
    )
    merges = shape.mappable and shape.num_groups == 1 and settings.router != "sliced"
    own = eep.settings_of(
        "fast",
        phases="both" if merges else "prune",
        num_groups=len(layers),
        num_evaluations=len(seeds) + settings.search,
        num_initial=len(seeds),
    )
    return Search(space, own, assessor, made)


def _genomes(seeds: Sequence[Choice], search: Search) -> list[Genome]:
    maps = (
        {layer.layer: layer.experts.kept or () for layer in s.routing_map.layers} for s in seeds
    )
    return [kept_genome(kept, search.groups) for kept in maps]
