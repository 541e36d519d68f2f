"""One compression under way: its recipe, model, task, engine and log; shared by all stages."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Protocol

from offline.engines.base import Engine, TaskResult
from offline.evaluations import Evaluations
from offline.methods.space import Kept, Space
from offline.recipe import CompressRecipe
from offline.result import SearchPoint
from offline.tasks.catalog import Split, Task
from offline.tasks.splits import data_identity
from vllm_moe_prune.checkpoint import Checkpoint
from vllm_moe_prune.provenance import Provenance
from vllm_moe_prune.routing_map import RoutingMap

Usage = Mapping[int, tuple[int, ...]]  # decoder layer -> tokens routed to each expert


class Reporter(Protocol):
    """Where progress goes; the command line draws bars, tests may listen."""

    def stage(self, title: str, total: int) -> None:
        """Begin a stage of ``total`` steps."""

    def step(self, amount: int = 1, note: str = "") -> None:
        """Finish ``amount`` steps of the current stage."""


@dataclass(slots=True)
class Run:
    """One compression under way."""

    recipe: CompressRecipe
    base: Checkpoint
    space: Space
    task: Task
    engine: Engine
    evaluations: Evaluations
    reporter: Reporter
    provenance: Provenance
    seconds: dict[str, float] = field(default_factory=dict)
    search_log: list[SearchPoint] = field(default_factory=list)

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        """Add the block's time to ``seconds``."""
        begin = time.perf_counter()
        yield
        self.seconds[stage] = self.seconds.get(stage, 0.0) + time.perf_counter() - begin

    def map(self, kept: Mapping[int, Kept], usage: Usage | None = None) -> RoutingMap:
        """Make the routing map of these kept experts, with this run's provenance."""
        return self.space.routing_map(kept, self.provenance, tokens_seen=usage)

    def evaluate(
        self, routing_map: RoutingMap | None, split: Split, limit: int | None
    ) -> TaskResult:
        """Evaluate a map (None: the base) on this run's task, or look the result up."""
        return self.evaluations(routing_map, self.task, split, limit)

    def log(self, result: TaskResult) -> None:
        """Note a candidate of the search."""
        best = max((point.best for point in self.search_log), default=0.0)
        point = SearchPoint(
            evaluation=len(self.search_log) + 1,
            fitness=result.accuracy,
            best=max(best, result.accuracy),
            seconds=result.seconds,
            tokens=result.tokens,
        )
        self.search_log.append(point)


def provenance_of(recipe: CompressRecipe, task: Task) -> Provenance:
    """Say how a run's map is made: settings, seed, and the items that decide."""
    splits: list[tuple[Split, int]] = [("search", recipe.search_items)]
    if recipe.method == "eep":
        splits.append(("selection", recipe.selection_items))
    return Provenance.now(
        recipe.method,
        settings=recipe.model_dump(mode="json", exclude={"model", "device", "seed"}),
        seed=recipe.seed,
        data=tuple(data_identity(task, split, limit) for split, limit in splits),
    )
