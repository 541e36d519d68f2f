"""What every engine can do, and what an evaluation gives back. Imports no torch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from offline.tasks.catalog import Split, Task
    from vllm_moe_prune.layout import MoeLayout
    from vllm_moe_prune.routing_map import RoutingMap

_Z_95 = 1.959963984540054  # two-sided 95 % of a normal distribution


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
    """The items of one evaluation; ``tokens`` went through the model in ``seconds``."""

    task: str
    split: str
    items: tuple[ItemResult, ...]
    tokens: int
    seconds: float

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
        """Return the 95 % Wilson interval of the accuracy: right at 0 and 1 and for few items."""
        count, mean = len(self.items), self.accuracy
        spread = _Z_95**2 / count
        centre = (mean + spread / 2) / (1 + spread)
        half = _Z_95 * math.sqrt(mean * (1 - mean) / count + spread / (4 * count)) / (1 + spread)
        return max(0.0, centre - half), min(1.0, centre + half)

    def to_json(self) -> dict[str, Any]:
        """Return plain values for ``json.dumps``."""
        return asdict(self)

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> TaskResult:
        """Rebuild what ``to_json`` gave."""
        items = tuple(ItemResult(**item) for item in fields["items"])
        return cls(**{**fields, "items": items})


@dataclass(frozen=True, slots=True)
class ExpertUse:
    """How the router of one layer spread some tokens over its E experts.

    ``tokens`` [E] counts the tokens routed to each expert; it sums to tokens x top-k. ``scores``
    [E] sums each expert's router score over *all* tokens, chosen or not (EEP's Soft Activation,
    appendix A.2); it sums to the number of tokens where scores are a softmax.
    """

    tokens: NDArray[np.int64]
    scores: NDArray[np.float64]


class Engine(Protocol):
    """A loaded base model that can behave as any routing map of it would.

    Engines never write a checkpoint to try a map.
    """

    @property
    def layout(self) -> MoeLayout:
        """Return the layout of the model's family."""
        ...

    @property
    def expert_counts(self) -> Mapping[int, int]:
        """Return decoder layer -> number of experts in the base."""
        ...

    @property
    def top_k(self) -> int:
        """Return the active experts per token in the base."""
        ...

    def apply(self, routing_map: RoutingMap | None) -> None:
        """Make the model behave as ``routing_map`` says; None makes it the base again.

        Compares expert counts only: whether the map was made for this very base is for the caller
        to ask (``RoutingMap.check_base``), who knows what the user allows.

        :raises PruneError: if the map was not made for a model with these experts
        """
        ...

    def evaluate(
        self, task: Task, split: Split, limit: int | None = None, first: int = 0
    ) -> TaskResult:
        """Score items ``first`` to ``limit`` (exclusive) of a split with the map now applied.

        :raises PruneError: if the task's data cannot be had or the range holds no item
        """
        ...

    def agreement(
        self, task: Task, split: Split, limit: int | None = None, first: int = 0
    ) -> TaskResult:
        """Compare with the base on the items' texts, without labels, with the map now applied.

        Of each item ``correct`` is the mean over its tokens of sum_v min(p_v, q_v), p and q the
        next-token distributions of the base and of the model now: the expected acceptance rate
        of speculative decoding (Leviathan et al. 2023, theorem 3.5). The base's distributions are
        computed once and kept.

        :raises PruneError: as `evaluate`
        """
        ...

    def usage(self, task: Task, split: Split, limit: int | None = None) -> dict[int, ExpertUse]:
        """Watch the router on the texts of the items, each question once with all its choices.

        Examples that a task puts before its questions are left out.

        :returns: decoder layer -> use of its experts
        """
        ...
