"""How the base's router uses its experts on what candidates are measured on."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from offline.engines.base import Engine, ExpertUse
from offline.fitness.objective import Objective

Usage = Mapping[int, ExpertUse]  # decoder layer -> use of its experts


def usage_of(
    engine: Engine, objective: Objective, on_task: Callable[[], object] = lambda: None
) -> Usage:
    """Watch the base's router on the search items of all tasks, and add up.

    :param on_task: called after each task
    :raises PruneError: if a task's data cannot be had
    """
    engine.apply(None)
    total: dict[int, ExpertUse] = {}
    for entry in objective.tasks:
        for layer, use in engine.usage(entry.task, "search", objective.items.get("search")).items():
            before = total.get(layer)
            total[layer] = use if before is None else _sum(before, use)
        on_task()
    return total


def _sum(one: ExpertUse, other: ExpertUse) -> ExpertUse:
    return ExpertUse(one.tokens + other.tokens, one.scores + other.scores)
