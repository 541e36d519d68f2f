"""Choosing the map: runs the recipe's method on the search and selection splits."""

from __future__ import annotations

import random

from offline.compress.observations import Observations
from offline.compress.recipe import CompressRecipe
from offline.compress.run import Run
from offline.compress.search import Search
from offline.fitness.candidate import Assessment
from offline.maps.genome import Genome
from offline.methods import eep
from offline.results.compression import SearchPoint, Variant
from vllm_moe_prune.routing_map import RoutingMap

Chosen = dict[Variant, RoutingMap]  # what the method found; the last one is built
_SEEDS = ("frequency", "soft_activation")


def eep_settings(recipe: CompressRecipe, num_layers: int) -> eep.EepSettings:
    """Return the search's numbers: the preset's, changed by what the recipe gives.

    :raises PruneError: if they do not fit together
    """
    return eep.settings_of(
        recipe.preset,
        phases=recipe.phases,
        num_groups=recipe.num_groups(num_layers),
        num_evaluations=recipe.evaluations,
        prune_until=recipe.prune_evaluations,
        num_initial=recipe.initial,
        children=recipe.children,
        finalists=recipe.finalists,
    )


def choose(run: Run, seen: Observations) -> Chosen:
    """Return the map that the recipe's method finds; of EEP also what pruning alone had found."""
    method = run.recipe.method
    if method == "eep":
        return _eep(run, seen)
    name = run.recipe.criteria[0] if method == "oneshot" else method
    return {method: seen.maps(name, random.Random(run.recipe.seed))[0]}


def _eep(run: Run, seen: Observations) -> Chosen:
    """Search, then re-rank the best few on items that the search never saw."""
    settings = eep_settings(run.recipe, len(run.space.layers))
    search = Search(run.space, settings, run.assessor, run.provenance)
    initial = _initial(run, seen, search)
    run.reporter.stage("searching", settings.num_evaluations)
    population = search.run(random.Random(run.recipe.seed), initial)
    run.reporter.step(settings.num_evaluations - len(population))  # where no more could be found
    only_merges = run.space.keeps_all or settings.phases == "merge"
    run.search_log += _points(search.candidates, population, only_merges=only_merges)
    count = settings.finalists
    given = population[: len(initial) + run.space.keeps_all]  # one-shot maps, the unchanged model
    pruned = [one for one in population if one.phase != "merge"]
    finalists = [*given, *eep.best(pruned, count), *eep.best(population, count)]
    if only_merges or len(pruned) == len(population):
        return {"eep": _finalist(run, seen, search, finalists)}
    return {
        "eep_prune": _finalist(run, seen, search, [*given, *eep.best(pruned, count)]),
        "eep": _finalist(run, seen, search, finalists),
    }


def _initial(run: Run, seen: Observations, search: Search) -> list[Genome]:
    """Return the one-shot methods' maps, where the first generation begins with them."""
    recipe, space = run.recipe, run.space
    if space.keeps_all:
        return []
    more = ("naee",) if "naee" in recipe.baselines else ()
    found = seen.genomes(
        (*((*_SEEDS, *more) if recipe.seeds else ()), *recipe.seed_words), search.groups
    )
    return list({genome.key: genome for genome in reversed(found)}.values())[::-1]


def _points(
    candidates: list[Assessment], population: eep.Population, *, only_merges: bool
) -> list[SearchPoint]:
    """Return what the report shows of every candidate."""
    points: list[SearchPoint] = []
    best: float | None = None
    for candidate, individual in zip(candidates, population, strict=True):
        if candidate.complete:
            best = candidate.fitness if best is None else max(best, candidate.fitness)
        points.append(
            SearchPoint(
                evaluation=len(points) + 1,
                phase="merge" if only_merges or individual.phase == "merge" else "prune",
                fitness=candidate.fitness,
                best=candidate.fitness if best is None else best,
                complete=candidate.complete,
                items=candidate.items,
                seconds=candidate.seconds,
                tokens=candidate.tokens,
            )
        )
    return points


def _finalist(
    run: Run, seen: Observations, search: Search, finalists: eep.Population
) -> RoutingMap:
    """Return the map that does best on the selection split; ties go to the first, the simplest.

    The best of a search fit its items more closely than they do others (docs/results.md), merged
    ones most of all. So what the search began with and the best of its pruning phase compete here
    too: pruning and merging are chosen only where they hold on items they have not seen.
    """
    maps = [
        run.space.genome_map(genome, search.groups, run.provenance, seen.tokens)
        for genome in dict.fromkeys(one.genome for one in finalists)
    ]
    run.reporter.stage("re-ranking the finalists", len(maps))
    base = run.assessor.evaluate(None, "selection") if run.objective.needs_base else None
    scores = []
    for routing_map in maps:
        scores.append(run.objective.fitness(run.assessor.evaluate(routing_map, "selection"), base))
        run.reporter.step()
    return maps[max(range(len(maps)), key=lambda number: scores[number])]
