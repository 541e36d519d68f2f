"""Measuring a checkpoint on held-out items, and keeping each number as soon as it is known."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from offline.engines.base import Engine
from offline.recover.form import Form
from offline.results.metrics import finite
from offline.results.recovery import Cell, Mode, Subject
from offline.tasks.catalog import Task
from offline.tasks.results import TaskResult
from offline.tasks.splits import load_items
from vllm_moe_prune.errors import PruneError
from vllm_moe_prune.provenance import write_atomic
from vllm_moe_prune.reading import read_list

_Key = tuple[Subject, Mode, str]


@dataclass(slots=True)
class Cells:
    """The numbers of one recovery: a file that a run which was killed reads again.

    :raises PruneError: if the file is damaged
    """

    file: Path
    _known: dict[_Key, Cell] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.file.exists():
            return
        try:
            for cell in read_list(self.file, Cell):
                self._remember(cell)
        except PruneError as error:
            raise PruneError(error.message, hint="delete it; it is measured again") from None

    def __contains__(self, key: _Key) -> bool:
        return key in self._known

    def __getitem__(self, key: _Key) -> Cell:
        return self._known[key]

    def add(self, cell: Cell) -> None:
        """Write a number down."""
        self._remember(cell)
        fields: list[Any] = [one.model_dump(mode="json") for one in self._known.values()]
        write_atomic(self.file, json.dumps(fields, indent=1) + "\n")

    def _remember(self, cell: Cell) -> None:
        self._known[(cell.subject, cell.mode, cell.task)] = cell


def before_finetune(tasks: tuple[Task, ...], shots: int) -> Iterator[tuple[Mode, Task]]:
    """Yield what is measured before a finetune: mode, and the task as it is asked."""
    for task in tasks:
        yield "zero-shot", task.bare
        if shots and task.takes_examples:
            yield "k-shot", task.with_shots(shots)


def measure(engine: Engine, subject: Subject, mode: Mode, task: Task, limit: int | None) -> Cell:
    """Evaluate what the engine has loaded on the held-out items of a task.

    :raises PruneError: if the task's data cannot be had
    """
    result = engine.evaluate(task, "test", limit)
    low, high = result.confidence_interval()
    return Cell(
        subject=subject,
        mode=mode,
        task=task.stem,
        metric=task.metric,
        accuracy=result.accuracy,
        low=low,
        high=high,
        items=len(result.items),
        in_format=_in_format(task, result, limit),
        seconds=round(result.seconds, 3),
        metrics=finite(result.metrics),
        data_split=result.source,
        unfinished=result.unfinished,
    )


def _in_format(task: Task, result: TaskResult, limit: int | None) -> float | None:
    if task.metric != "exact_match" or task.lm_eval is not None:
        return None
    items = load_items(task, "test")[:limit]
    form = Form.of(answer for item in items for answer in item.answers)
    fitting = [form.fits(str(item.prediction)) for item in result.items]
    return sum(fitting) / len(fitting)
