"""Choosing the experts to keep: runs the recipe's method on the search and selection splits."""

from __future__ import annotations

import random

from offline.methods import eep
from offline.methods.baselines import most_used, random_kept
from offline.methods.space import Kept
from offline.run import Run, Usage
from vllm_moe_prune.routing_map import RoutingMap


def count_usage(run: Run) -> Usage:
    """Count the tokens that the base model routes to each expert on the search items."""
    run.reporter.stage("counting tokens per expert", 1)
    run.engine.apply(None)
    counts = run.engine.usage(run.task, "search", run.recipe.search_items)
    run.reporter.step()
    return {layer: tuple(int(n) for n in row) for layer, row in counts.items()}


def choose(run: Run, usage: Usage) -> RoutingMap:
    """Return the map that the recipe's method finds."""
    rng = random.Random(run.recipe.seed)
    if run.recipe.method == "random":
        kept = random_kept(run.space, rng)
    elif run.recipe.method == "frequency":
        kept = most_used(run.space, usage)
    else:
        kept = _eep(run, rng)
    return run.map(kept, usage)


def _eep(run: Run, rng: random.Random) -> dict[int, Kept]:
    """Search on the search split, then re-rank the best few on items the search never saw."""
    recipe, space = run.recipe, run.space
    settings = eep.EepSettings(
        num_groups=recipe.num_groups(len(space.layers)),
        num_initial=min(recipe.initial, recipe.evaluations),
        num_evaluations=recipe.evaluations,
    )
    groups = eep.depth_groups(space.layers, settings.num_groups)

    def fitness(genome: eep.Genome) -> float:
        routing_map = run.map(eep.kept_by_layer(genome, groups))
        result = run.evaluate(routing_map, "search", recipe.search_items)
        run.log(result)
        return result.accuracy

    run.reporter.stage("searching", settings.num_evaluations)
    population: list[eep.Individual] = []
    for population in eep.search(space, settings, fitness, rng):
        run.reporter.step(note=f"best {eep.best(population)[0].fitness:.3f}")
    finalists = eep.best(population, recipe.finalists)
    run.reporter.stage("re-ranking the finalists", len(finalists))
    ranked = []
    for finalist in finalists:
        kept = eep.kept_by_layer(finalist.genome, groups)
        result = run.evaluate(run.map(kept), "selection", recipe.selection_items)
        ranked.append((result.accuracy, finalist.fitness, kept))
        run.reporter.step()
    return max(ranked, key=lambda entry: entry[:2])[2]
