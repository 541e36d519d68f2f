"""`Objective`: the number that a search climbs, from one or several tasks. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from statistics import fmean
from typing import Literal, get_args

from offline.tasks.catalog import DEFAULT, Library, Split, Task, get_tasks
from offline.tasks.results import TaskResult
from vllm_moe_prune.errors import PruneError

Measure = Literal["accuracy", "margin", "agreement"]
MEASURES: tuple[Measure, ...] = get_args(Measure)
Results = Mapping[str, TaskResult]  # task name -> its items


@dataclass(frozen=True, slots=True)
class WeightedTask:
    """A task and its weight among the others; weights need not sum to anything."""

    task: Task
    weight: float = 1.0


@dataclass(frozen=True, slots=True)
class Objective:
    """Tasks with weights, what is measured on each item, and how far a task may fall.

    With v_t the mean of task t's item values, s_t its share of all weights and b_t the base
    model's mean on the same items, the fitness is

        sum_t s_t v_t  -  max(0, max_t (b_t - guard - v_t))

    so a candidate that lets a task fall more than ``guard`` below the base loses the excess of its
    worst task. Without a guard only the first term is left. Units are the measure's: a share
    in 0..1 for ``accuracy`` (EEP's fitness) and ``agreement``, the task metric's for ``margin``.

    :param items: split -> number of items of each task; all where a split is not named or None
    :param kept_out: tasks that are measured on held-out items and are no part of the fitness
    :raises PruneError: if the tasks, the measure and the guard do not fit together
    """

    tasks: tuple[WeightedTask, ...]
    measure: Measure = "accuracy"
    guard: float | None = None
    items: Mapping[Split, int | None] = field(default_factory=dict)
    kept_out: tuple[WeightedTask, ...] = ()

    def __post_init__(self) -> None:
        if not self.tasks:
            raise PruneError(*self._nothing_to_search())
        names = tuple(entry.task.name for entry in (*self.tasks, *self.kept_out))
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise PruneError(f"task {twice} is named twice")
        for entry in self.tasks:
            _check_measure(entry.task, self.measure)
            if not 0 < entry.weight < math.inf:
                raise PruneError(f"task {entry.task.name}: weight {entry.weight:g} is not above 0")
        if self.guard is not None and not 0 <= self.guard < math.inf:
            raise PruneError(f"a guard of {self.guard:g} is not a number from 0 on")

    @classmethod
    def parse(
        cls,
        text: str,
        *,
        measure: Measure = "accuracy",
        guard: float | None = None,
        items: Mapping[Split, int | None] | None = None,
        library: Library = DEFAULT,
    ) -> Objective:
        """Read ``NAME[:METRIC][:WEIGHT],...`` such as ``sciq:2,gsm8k:1``.

        A weight is 1 if not given; the tasks of a group or tag share its weight,
        but for those that are kept out of searches.

        :raises PruneError: for an unknown task, a weight that is none, or the same task twice
        """
        parts = [part.strip() for part in text.split(",")]
        found = [task for part in parts for task in _parse_tasks(part, text, library)]
        tasks = tuple(entry for entry in found if not entry.task.kept_out)
        kept_out = tuple(entry for entry in found if entry.task.kept_out)
        return cls(tasks, measure, guard, items or {}, kept_out)

    @property
    def names(self) -> tuple[str, ...]:
        """Return the names of the tasks, in order."""
        return tuple(entry.task.name for entry in self.tasks)

    def _nothing_to_search(self) -> tuple[str, str | None]:
        if not self.kept_out:
            return "an objective needs a task", None
        return (
            f"task {self.kept_out[0].task.name} is only measured: no search sees it",
            "name a task to search on beside it, or measure with vmprune eval",
        )

    @property
    def shares(self) -> dict[str, float]:
        """Return task name -> its weight's share of all; they sum to 1."""
        total = math.fsum(entry.weight for entry in self.tasks)
        return {entry.task.name: entry.weight / total for entry in self.tasks}

    @property
    def bounded(self) -> bool:
        """Whether an item's value lies in 0..1."""
        return self.measure != "margin"

    @property
    def needs_base(self) -> bool:
        """Whether `fitness` wants the base model's results; its agreement with itself is 1."""
        return self.guard is not None and self.measure != "agreement"

    def identity(self) -> str:
        """Return what tells this objective's fitness from another's, in one line."""
        tasks = ",".join(f"{entry.task.name}:{entry.weight!r}" for entry in self.tasks)
        return f"{self.measure} {tasks} guard={self.guard!r} items={self.items.get('search')}"

    def fitness(self, results: Results, base_results: Results | None = None) -> float:
        """Return the fitness of a candidate from its results on all tasks; higher is better.

        :param results: the first items, or all, of every task
        :param base_results: of the base model on at least these items, where `needs_base`
        """
        values = {name: fmean(item_values(results[name], self.measure)) for name in self.names}
        mean = math.fsum(share * values[name] for name, share in self.shares.items())
        if self.guard is None:
            return mean
        fall = max(
            self._base_value(results[name], base_results) - values[name] for name in self.names
        )
        return mean - max(0.0, fall - self.guard)

    def _base_value(self, result: TaskResult, base_results: Results | None) -> float:
        if not self.needs_base:
            return 1.0
        assert base_results is not None, "a guard needs the base's results"
        base = base_results[result.task]
        count = len(result.items)
        same = [item.item for item in base.items[:count]] == [item.item for item in result.items]
        assert same, f"{result.task}: candidate and base were not measured on the same items"
        return fmean(item_values(base, self.measure)[:count])


def item_values(result: TaskResult, measure: Measure) -> tuple[float, ...]:
    """Return what each item adds to the fitness, in the items' order.

    :raises PruneError: if margins are asked of items that have no choices
    """
    if measure != "margin":
        return tuple(item.correct for item in result.items)
    margins = tuple(item.margin for item in result.items if item.margin is not None)
    if len(margins) != len(result.items):
        raise PruneError(f"task {result.task}: an item without choices has no margin")
    return margins


def _parse_tasks(part: str, text: str, library: Library) -> list[WeightedTask]:
    if not part:
        raise PruneError(f"tasks {text!r}: there is nothing between two commas")
    name, weight = _parse_weight(part)
    found = get_tasks(name, library)
    searched = sum(not task.kept_out for task in found)
    return [WeightedTask(task, weight / (searched or 1)) for task in found]


def _parse_weight(part: str) -> tuple[str, float]:
    """Return a name and the weight behind its last colon; what is no number is of the name."""
    name, colon, tail = part.rpartition(":")
    if not colon or name == "text":  # `text:FILE` names a file, whatever it is called
        return part, 1.0
    try:
        return name, float(tail)
    except ValueError:
        return part, 1.0


def _check_measure(task: Task, measure: Measure) -> None:
    if measure not in MEASURES:
        raise PruneError(f"unknown measure {measure!r}", hint=f"one of {', '.join(MEASURES)}")
    if task.lm_eval is not None and measure == "accuracy" and not task.metric:
        _check_fitness(task)
    if task.kind == "text" and measure != "agreement":
        raise PruneError(
            f"task {task.name} is plain text and has no {measure}",
            hint="measure its agreement with the base",
        )
    if measure == "margin" and task.kind != "choice":
        raise PruneError(
            f"task {task.name} has no choices, so no margin", hint="measure its accuracy"
        )


def _check_fitness(task: Task) -> None:
    """Refuse a task none of whose metrics has a value for every item."""
    assert task.lm_eval is not None
    if not task.lm_eval.open_metrics:
        raise PruneError(
            f"task {task.name} has no metric with a value for every item: "
            f"{', '.join(task.lm_eval.metrics)} can be reported, not maximised",
            hint="--fitness agreement needs none",
        )
