"""One compression under way: its recipe, model, objective, engines and log; for all stages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path

from offline.compress.recipe import CompressRecipe
from offline.engines.base import Engine, ExpertUse
from offline.fitness.assessor import Assessor
from offline.fitness.objective import Objective
from offline.maps.map_space import Space
from offline.results.compression import SearchPoint
from offline.runs.progress import Reporter, timed
from offline.tasks.catalog import Split
from offline.tasks.splits import data_identity
from vllm_moe_prune.checkpoint import Checkpoint
from vllm_moe_prune.provenance import DataIdentity, Provenance

# Settings that say where something is or runs, and decide nothing.
PLACES = (
    *("model", "scores", "device", "replicas", "ray_address"),
    *("processes", "accelerate_config", "save_every"),
)
Usage = Mapping[int, ExpertUse]  # decoder layer -> how the base's router used its experts


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

    def timed(self, stage: str) -> AbstractContextManager[None]:
        """Add the block's time to ``seconds``."""
        return timed(self.seconds, stage)

    def items(self, split: Split) -> int | None:
        """Return how many items of each task a split has for this run; None is all."""
        return self.objective.items.get(split)


def items_of(recipe: CompressRecipe) -> dict[Split, int | None]:
    """Return split -> items of each task."""
    return {
        "search": recipe.search_items,
        "selection": recipe.selection_items,
        "test": recipe.test_items,
    }


def provenance_of(
    recipe: CompressRecipe, objective: Objective, scores: DataIdentity | None = None
) -> Provenance:
    """Say how a run's map is made: settings, seed, and the items and scores that decide."""
    splits: list[Split] = ["search"]
    if recipe.method == "eep":
        splits.append("selection")
    data: list[DataIdentity] = [
        data_identity(entry.task, split, objective.items.get(split))
        for entry in objective.tasks
        for split in splits
    ]
    return Provenance.now(
        recipe.method,
        settings=recipe.model_dump(mode="json", exclude={*PLACES, "seed"}),
        seed=recipe.seed,
        data=(*data, *([scores] if scores else ())),
    )
