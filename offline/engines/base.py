"""What every engine can do, and what an evaluation gives back. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

from offline.tasks.results import TaskResult

if TYPE_CHECKING:
    from offline.tasks.catalog import Split, Task
    from vllm_moe_prune.layout import MoeLayout
    from vllm_moe_prune.routing_map import RoutingMap


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
