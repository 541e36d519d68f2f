"""Accuracy of the base, the baselines and the chosen maps on items that decided nothing."""

from __future__ import annotations

import random
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from offline.compress.methods import METHODS
from offline.compress.observations import Observations
from offline.compress.run import MethodMaps, Run
from offline.fitness.assessor import Assessor
from offline.fitness.objective import Measure, Objective, WeightedTask
from offline.results.compression import VARIANTS, Quality, Variant
from offline.results.metrics import finite
from offline.tasks.catalog import Split
from offline.tasks.results import TaskResult
from vllm_moe_prune.routing_map import RoutingMap

Variants = Mapping[Variant, Sequence[RoutingMap | None]]


def measure_quality(run: Run, chosen: MethodMaps, seen: Observations) -> tuple[Quality, ...]:
    """Evaluate all variants on the held-out split; what EEP chose also where it was chosen."""
    variants = _variants(run, chosen, seen)
    assessors = _assessors(run, run.objective.kept_out)
    run.reporter.stage(
        "measuring on held-out items", len(assessors) * sum(map(len, variants.values()))
    )
    quality: list[Quality] = []
    searched = dict(_assessors(run))
    for measure, assessor in assessors:
        for variant, maps in variants.items():
            quality += _measured(run, assessor, measure, variant, maps, "test")
        for variant, routing_map in chosen.items() if measure in searched else ():
            for split in _searched_on(run):
                on_it = searched[measure]
                quality += _measured(run, on_it, measure, variant, [routing_map], split)
    return in_table_order(quality)


def _searched_on(run: Run) -> tuple[Split, ...]:
    """Return the splits on which a search chose, to show how much less it is on others."""
    splits = METHODS[run.recipe.method.name].decided_on
    return splits if "selection" in splits else ()


def measure_as_it_is(run: Run, variant: Variant) -> tuple[Quality, ...]:
    """Evaluate the run's own model on the held-out split, no map applied.

    For a model whose weights were trained: no map of the base makes it.
    """
    assessors = _assessors(run, run.objective.kept_out)
    run.reporter.stage("measuring on held-out items", len(assessors))
    found: list[Quality] = []
    for measure, assessor in assessors:
        found += _measured(run, assessor, measure, variant, [None], "test")
    return tuple(found)


def in_table_order(quality: Iterable[Quality]) -> tuple[Quality, ...]:
    """Return the entries as tables show them: held-out first, the base first in each."""
    return tuple(sorted(quality, key=lambda q: (q.split != "test", _place(q.variant))))


def _place(variant: Variant) -> float:
    """Return where a variant stands in tables: criteria come before what the run is about."""
    return VARIANTS.index(variant) if variant in VARIANTS else VARIANTS.index("oneshot") - 0.5


def _variants(run: Run, chosen: MethodMaps, seen: Observations) -> Variants:
    """Return what to measure: name -> maps, of which the mean is taken; None is the base."""
    rng = random.Random(f"random maps {run.recipe.method.seed}")
    variants: dict[Variant, Sequence[RoutingMap | None]] = {"base": [None]}
    if not run.space.keeps_all:
        for name in run.recipe.measure.baselines:
            count = run.recipe.measure.random_maps if name == "random" else 1
            variants[name] = seen.maps(name, rng, count)
    for variant, routing_map in chosen.items():
        before = variants.get(variant, ()) if variant == "random" else ()
        variants[variant] = [routing_map, *before]
    return {variant: maps for variant, maps in variants.items() if maps}


def _assessors(run: Run, kept_out: tuple[WeightedTask, ...] = ()) -> list[tuple[Measure, Assessor]]:
    """Return what measures accuracy on tasks with answers, and agreement where it is the aim.

    :param kept_out: tasks that are measured beside those of the search
    """
    tasks = (*run.objective.tasks, *kept_out)
    labelled = tuple(entry for entry in tasks if entry.task.kind != "text")
    found: list[tuple[Measure, Assessor]] = []
    if labelled:
        accuracy = Objective(labelled, "accuracy", items=run.objective.items)
        found.append(("accuracy", Assessor(run.engines, accuracy, run.assessor.log)))
    if run.objective.measure == "agreement":
        agreement = replace(run.objective, tasks=tasks, kept_out=(), guard=None)
        found.append(("agreement", Assessor(run.engines, agreement, run.assessor.log)))
    return found


def _measured(
    run: Run,
    assessor: Assessor,
    measure: Measure,
    variant: Variant,
    maps: Sequence[RoutingMap | None],
    split: Split,
) -> list[Quality]:
    each = []
    for results in assessor.evaluate_all(maps, split):
        each.append(results)
        if split == "test":
            run.reporter.step()
    return [
        _entry(variant, split, measure, task, [results[task] for results in each])
        for task in assessor.objective.names
    ]


def _entry(
    variant: Variant, split: Split, measure: Measure, task: str, results: list[TaskResult]
) -> Quality:
    each = [result.accuracy for result in results]
    low, high = results[0].confidence_interval() if len(each) == 1 else _interval(each)
    return Quality.model_validate(
        {
            "variant": variant,
            "task": task,
            "measure": measure,
            "split": split,
            "accuracy": statistics.fmean(each),
            "low": low,
            "high": high,
            "items": len(results[0].items),
            "maps": len(each),
            "each": each,
            "metrics": _mean_metrics(results),
            "data_split": results[0].source,
            "unfinished": sum(result.unfinished for result in results),
        }
    )


def _mean_metrics(results: list[TaskResult]) -> dict[str, float]:
    """Return the mean over maps of all metrics that each of them has."""
    each = [finite(result.metrics) for result in results]
    names = [name for name in each[0] if all(name in metrics for metrics in each)]
    return {name: statistics.fmean(metrics[name] for metrics in each) for name in names}


def _interval(each: list[float]) -> tuple[float, float]:
    """Return the 95 % interval of the mean over maps (Student's t)."""
    from scipy.stats import t

    half = float(t.ppf(0.975, len(each) - 1)) * statistics.stdev(each) / len(each) ** 0.5
    mean = statistics.fmean(each)
    return max(0.0, mean - half), min(1.0, mean + half)
