"""What an evaluation of a task gives back, item by item."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from offline.results.intervals import wilson


@dataclass(frozen=True, slots=True)
class ItemResult:
    """What the model made of one item of a task.

    ``correct`` is 0 or 1 (between them for tasks with partial credit); of an agreement it is the
    mean acceptance over the item's tokens. ``margin`` is the score of the right choice minus that
    of the best wrong one, in the unit of the task's metric: nats for ``acc``, nats per character
    for ``acc_norm``; None where a task has no choices. ``prediction`` is the index of the choice
    taken, or the text generated; empty for an agreement.
    """

    item: str
    correct: float
    margin: float | None
    prediction: int | str


@dataclass(frozen=True, slots=True)
class TaskResult:
    """The items of one evaluation; ``tokens`` went through the model in ``seconds``.

    Of a task of lm-evaluation-harness ``metrics`` are all that it reports, over these items, and
    ``source`` is the split of the data that they come from. ``unfinished`` generations never ended
    their thinking, and are no answers.
    """

    task: str
    split: str
    items: tuple[ItemResult, ...]
    tokens: int
    seconds: float
    metrics: Mapping[str, float] = field(default_factory=dict)
    source: str = ""
    unfinished: int = 0

    @property
    def accuracy(self) -> float:
        """Mean of ``correct``, in 0..1."""
        return sum(item.correct for item in self.items) / len(self.items)

    @property
    def margin(self) -> float:
        """Mean margin: a finer fitness than accuracy where many candidates tie."""
        margins = [item.margin for item in self.items if item.margin is not None]
        return sum(margins) / len(margins) if margins else math.nan

    def confidence_interval(self) -> tuple[float, float]:
        """Return the 95 % Wilson interval of the accuracy: right at 0 and 1 and for few items.

        Both ends are NaN where the accuracy is no share.
        """
        return wilson(self.accuracy, len(self.items))

    def to_json(self) -> dict[str, Any]:
        """Return plain values for ``json.dumps``; what a task does not have is left out."""
        fields = asdict(self)
        for name in ("metrics", "source", "unfinished"):
            if not fields[name]:
                del fields[name]
        return fields

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> TaskResult:
        """Rebuild what ``to_json`` gave."""
        items = tuple(ItemResult(**item) for item in fields["items"])
        return cls(**{**fields, "items": items})
