"""Accuracy of the base, the baselines and the chosen map on items that decided nothing."""

from __future__ import annotations

import random
import statistics

from offline.engines.base import TaskResult
from offline.methods.baselines import most_used, random_kept
from offline.result import Quality
from offline.run import Run, Usage
from vllm_moe_prune.routing_map import RoutingMap


def measure_quality(run: Run, chosen: RoutingMap, usage: Usage) -> tuple[Quality, ...]:
    """Evaluate all variants on the held-out split; the chosen one also where it was chosen."""
    variants = _variants(run, chosen, usage)
    run.reporter.stage("measuring on held-out items", sum(map(len, variants.values())))
    quality = []
    for variant, routing_maps in variants.items():
        results = []
        for routing_map in routing_maps:
            results.append(run.evaluate(routing_map, "test", run.recipe.test_items))
            run.reporter.step()
        quality.append(_entry(variant, "test", results))
    return (*quality, *_optimism(run, chosen))


def _variants(run: Run, chosen: RoutingMap, usage: Usage) -> dict[str, list[RoutingMap | None]]:
    rng = random.Random(f"random maps {run.recipe.seed}")
    variants: dict[str, list[RoutingMap | None]] = {"base": [None]}
    if run.recipe.random_maps:
        maps = [run.map(random_kept(run.space, rng)) for _ in range(run.recipe.random_maps)]
        variants["random"] = [chosen, *maps] if run.recipe.method == "random" else [*maps]
    variants["frequency"] = [run.map(most_used(run.space, usage))]
    if run.recipe.method == "eep":
        variants["eep"] = [chosen]
    return variants


def _optimism(run: Run, chosen: RoutingMap) -> list[Quality]:
    """Return the chosen map on the splits that it was chosen by: how much of it was luck."""
    if run.recipe.method != "eep":
        return []
    search = run.evaluate(chosen, "search", run.recipe.search_items)
    selection = run.evaluate(chosen, "selection", run.recipe.selection_items)
    return [_entry("eep", "search", [search]), _entry("eep", "selection", [selection])]


def _entry(variant: str, split: str, results: list[TaskResult]) -> Quality:
    each = [result.accuracy for result in results]
    low, high = results[0].confidence_interval() if len(each) == 1 else _interval(each)
    return Quality.model_validate(
        {
            "variant": variant,
            "split": split,
            "accuracy": statistics.fmean(each),
            "low": low,
            "high": high,
            "items": len(results[0].items),
            "maps": len(each),
            "each": each,
        }
    )


def _interval(each: list[float]) -> tuple[float, float]:
    """Return the 95 % interval of the mean over maps (Student's t)."""
    from scipy.stats import t

    half = float(t.ppf(0.975, len(each) - 1)) * statistics.stdev(each) / len(each) ** 0.5
    mean = statistics.fmean(each)
    return max(0.0, mean - half), min(1.0, mean + half)
