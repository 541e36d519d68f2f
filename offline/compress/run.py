"""One compression under way: its recipe, model, objective, engines and log; for all stages."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path

from offline.compress.recipe.recipe import CompressRecipe
from offline.engines.base import Engine
from offline.fitness.assessor import Assessor
from offline.fitness.objective import Objective
from offline.maps.map_space import Space
from offline.results.compression import SearchPoint, Variant
from offline.results.text_use import TextUse
from offline.runs.progress import Reporter, timed
from offline.tasks.catalog import Split
from vllm_moe_prune.checkpoint import Checkpoint
from vllm_moe_prune.provenance import Provenance
from vllm_moe_prune.routing_map import RoutingMap

MethodMaps = dict[Variant, RoutingMap]  # what a method found; the last one is built


@dataclass(slots=True)
class Run:
    """One compression under way."""

    recipe: CompressRecipe
    base: Checkpoint
    space: Space
    objective: Objective
    engines: Sequence[Engine]
    assessor: Assessor
    reporter: Reporter
    provenance: Provenance
    folder: Path  # keeps what lets the run continue after a kill
    seconds: dict[str, float] = field(default_factory=dict)
    search_log: list[SearchPoint] = field(default_factory=list)
    text: dict[str, TextUse] = field(default_factory=dict)  # that experts were scored on

    def timed(self, stage: str) -> AbstractContextManager[None]:
        """Add the block's time to ``seconds``."""
        return timed(self.seconds, stage)

    def items(self, split: Split) -> int | None:
        """Return how many items of each task a split has for this run; None is all."""
        return self.objective.items.get(split)
