"""EEP on a run: searches on the search split, re-ranks on the selection split."""

from __future__ import annotations

import random

from offline.compress.observations import Observations
from offline.compress.recipe.eep import EepRecipe
from offline.compress.recipe.recipe import CompressRecipe
from offline.compress.run import MethodMaps, Run
from offline.engines.needs import check_mergeable
from offline.fitness.candidate import Assessment
from offline.maps.genome import Genome
from offline.maps.map_space import Space
from offline.methods import eep
from offline.methods.baselines import BY_USE
from offline.methods.search import Search
from offline.results.compression import SearchPoint
from vllm_moe_prune.checkpoint import Checkpoint
from vllm_moe_prune.routing_map import RoutingMap


def check_eep(recipe: CompressRecipe, space: Space, base: Checkpoint) -> None:
    """Refuse a search that cannot be.

    :raises PruneError: naming what does not fit together
    """
    assert isinstance(recipe, EepRecipe)
    settings = recipe.search.settings(recipe.method, len(space.layers))
    space.groups(settings.num_groups)
    has_initial = recipe.seeds or bool(recipe.searched_by)
    eep.check_phases(space, settings, has_initial=has_initial)
    if settings.phases != "prune":
        check_mergeable(base)


def choose_eep(run: Run, seen: Observations) -> MethodMaps:
    """Search, then re-rank the best few on items that the search never saw.

    :returns: also what pruning alone had found, before what is built
    """
    recipe = _recipe(run)
    settings = recipe.search.settings(recipe.method, len(run.space.layers))
    search = Search(run.space, settings, run.assessor, run.provenance)
    initial = _initial(run, seen, search)
    run.reporter.stage("searching", settings.num_evaluations)
    population = search.run(random.Random(recipe.method.seed), initial)
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
    recipe, space = _recipe(run), run.space
    if space.keeps_all:
        return []
    more = ("naee",) if "naee" in recipe.measure.baselines else ()
    found = seen.genomes(
        (*((*BY_USE, *more) if recipe.seeds else ()), *recipe.searched_by), search.groups
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


def _recipe(run: Run) -> EepRecipe:
    assert isinstance(run.recipe, EepRecipe)
    return run.recipe
