"""`Subject`: what a recipe speaks of, before the model is loaded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from offline.build.mtp import check_choice
from offline.build.quantised import check_unquantised
from offline.compress.choose import eep_settings
from offline.compress.recipe import CompressRecipe
from offline.compress.run import PLACES, Run, items_of, provenance_of
from offline.compress.scores import check_scored
from offline.engines.base import Engine
from offline.engines.local.correction import check_routable
from offline.fitness.assessor import Assessor
from offline.fitness.log import EvaluationLog
from offline.fitness.objective import Objective
from offline.fitness.racing import RacingSettings
from offline.maps.map_space import Space
from offline.maps.moe_shape import MoeShape
from offline.methods import eep
from offline.runs.progress import Reporter
from vllm_moe_prune.checkpoint import Checkpoint
from vllm_moe_prune.provenance import Provenance


@dataclass(frozen=True, slots=True)
class Subject:
    """What a recipe speaks of, opened and checked before the model is loaded."""

    recipe: CompressRecipe
    base: Checkpoint
    space: Space
    objective: Objective
    provenance: Provenance

    @classmethod
    def of(cls, recipe: CompressRecipe) -> Subject:
        """Open and check.

        :raises PruneError: for anything in the recipe or the base that cannot work
        """
        base = Checkpoint.open(recipe.model)
        if recipe.engine == "transformers":
            check_unquantised(recipe.model)
        check_choice(base, recipe.mtp, recipe.keep)
        check_routable(base.layout, base.layout.num_groups(base.config), recipe.engine)
        space = Space.of(
            MoeShape.of(base),
            recipe.keep,
            recipe.top_k,
            budget=recipe.budget,
            floor=recipe.floor,
        )
        if recipe.method == "eep":
            settings = eep_settings(recipe, len(space.layers))
            space.groups(settings.num_groups)
            has_initial = recipe.seeds or bool(recipe.seed_words)
            eep.check_phases(space, settings, has_initial=has_initial)
        objective = Objective.parse(
            recipe.task, measure=recipe.fitness, guard=recipe.guard, items=items_of(recipe)
        )
        scores = check_scored(recipe, space.shape.base)
        return cls(recipe, base, space, objective, provenance_of(recipe, objective, scores))

    def identity(self) -> dict[str, object]:
        """Return all that results depend on: a run with another identity is another run."""
        return {
            "recipe": self.recipe.model_dump(mode="json", exclude={*PLACES, "mtp"}),
            "base": self.space.shape.base.model_dump(exclude={"name"}),
            "data": [data.model_dump() for data in self.provenance.data],
        }

    @property
    def slack(self) -> float:
        """Return how far below the best a candidate may be and still become a parent."""
        return eep_settings(self.recipe, len(self.space.layers)).mutation_threshold

    def begin(self, engines: Sequence[Engine], folder: Path, reporter: Reporter) -> Run:
        """Start the run, continuing what is in the folder's log."""
        assessor = Assessor(
            engines,
            self.objective,
            EvaluationLog(folder / "evaluations.jsonl"),
            racing=RacingSettings(slack=self.slack) if self.recipe.races else None,
            on_done=lambda one: reporter.step(note=f"{one.fitness:.3f}"),
        )
        return Run(
            self.recipe,
            self.base,
            self.space,
            self.objective,
            engines,
            assessor,
            reporter,
            self.provenance,
            folder,
        )
