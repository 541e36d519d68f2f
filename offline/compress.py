"""`vmprune compress`: from a base checkpoint and a task to a pruned checkpoint with its evidence.

base -> engine -> method (search split) -> finalists (selection split) -> routing map, saved
     -> held-out split for base, random, frequency and the chosen map -> build -> result
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from offline.baselines import Observations
from offline.build import BuildPlan, build, plan_build
from offline.choose import choose, eep_settings
from offline.device import pick_device, pick_dtype
from offline.engines.base import Engine
from offline.engines.load import EngineFactory, load_engine, open_engines
from offline.fitness.assess import Assessor
from offline.fitness.log import EvaluationLog
from offline.fitness.objective import Objective
from offline.fitness.racing import RacingSettings
from offline.methods import eep
from offline.methods.space import Space
from offline.quality import measure_quality
from offline.recipe import CompressRecipe
from offline.result import RESULT_FILE, LayerOutcome, Quality, RunResult, Size
from offline.run import Reporter, Run, items_of, provenance_of
from offline.run_folder import run_folder
from offline.scored import analysis_beside, check_scored
from offline.staging import check_absent
from vllm_moe_prune.checkpoint import Checkpoint
from vllm_moe_prune.provenance import Provenance
from vllm_moe_prune.routing_map import RoutingMap


def compress(
    recipe: CompressRecipe,
    out: Path,
    *,
    make_engine: EngineFactory = load_engine,
    reporter: Reporter,
    force: bool = False,
) -> RunResult:
    """Choose experts, measure the choice on held-out items and build the pruned checkpoint.

    A run that was killed continues when the same call is made again; it keeps its log in
    ``OUT.run`` beside ``out``.

    :raises PruneError: for anything in the recipe or the base that cannot work, before any work
    """
    check_absent(out, force=force)
    device = pick_device(recipe.device)
    recipe = recipe.model_copy(
        update={"device": device, "dtype": pick_dtype(recipe.dtype, device)}
    )  # what is written down is what was computed in
    subject = _Subject.of(recipe)
    folder = run_folder(out, subject.identity(), force=force)
    reporter.stage("loading the model", 1)
    with open_engines(recipe, make_engine) as engines:
        reporter.step()
        run = subject.begin(engines, folder, reporter)
        with run.timed("search"):
            seen = Observations.of(run)
            found = choose(run, seen)
            chosen = list(found.values())[-1]
            chosen.save(folder)
        with run.timed("held-out"):
            quality = measure_quality(run, found, seen)
    plan = plan_build(run.base, chosen)
    result = _result(run, out, chosen, seen.tokens, quality, plan)
    reporter.stage("writing the checkpoint", plan.num_bytes)
    beside = {RESULT_FILE: result.to_json(), **analysis_beside(run, chosen)}
    build(run.base, chosen, out, force=force, progress=reporter.step, beside=beside)
    return result


@dataclass(frozen=True, slots=True)
class _Subject:
    """What a recipe speaks of, opened and checked before the model is loaded."""

    recipe: CompressRecipe
    base: Checkpoint
    space: Space
    objective: Objective
    provenance: Provenance

    @classmethod
    def of(cls, recipe: CompressRecipe) -> _Subject:
        base = Checkpoint.open(recipe.model)
        space = Space.of(base, recipe.keep, recipe.top_k, budget=recipe.budget, floor=recipe.floor)
        if recipe.method == "eep":
            settings = eep_settings(recipe, len(space.layers))
            space.groups(settings.num_groups)
            has_initial = recipe.seeds or bool(recipe.seed_words)
            eep.check_phases(space, settings, has_initial=has_initial)
        objective = Objective.parse(
            recipe.task, measure=recipe.fitness, guard=recipe.guard, items=items_of(recipe)
        )
        scores = check_scored(recipe, space.base)
        return cls(recipe, base, space, objective, provenance_of(recipe, objective, scores))

    def identity(self) -> dict[str, object]:
        """Return all that results depend on: a run with another identity is another run."""
        places = {"model", "scores", "device", "replicas", "ray_address"}
        return {
            "recipe": self.recipe.model_dump(mode="json", exclude=places),
            "base": self.space.base.model_dump(exclude={"name"}),
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


def _result(
    run: Run,
    out: Path,
    chosen: RoutingMap,
    usage: dict[int, tuple[int, ...]],
    quality: tuple[Quality, ...],
    plan: BuildPlan,
) -> RunResult:
    layers = tuple(
        LayerOutcome(
            layer=layer.layer,
            num_experts=layer.num_experts,
            num_kept=layer.num_kept,
            kept=layer.experts.kept or (),
            top_k=layer.top_k,
            router=layer.router,
            usage=usage[layer.layer],
        )
        for layer in chosen.layers
    )
    base_size, pruned_size = _sizes(run.base, chosen, plan)
    return RunResult(
        model=run.base.folder.resolve().name,
        out=out.name,
        method=run.recipe.method,
        task=run.recipe.task,
        tasks=run.objective.names,
        fitness=run.objective.measure,
        form=chosen.form,
        summary=chosen.summary(),
        map_digest=chosen.digest(),
        base_size=base_size,
        pruned_size=pruned_size,
        layers=layers,
        search=tuple(run.search_log),
        quality=quality,
        seconds={stage: round(value, 3) for stage, value in run.seconds.items()},
        provenance=chosen.provenance,
    )


def _sizes(base: Checkpoint, chosen: RoutingMap, plan: BuildPlan) -> tuple[Size, Size]:
    before = Size(
        experts=sum(base.expert_counts().values()),
        num_bytes=base.num_bytes,
        expert_bytes=base.expert_bytes(),
    )
    after = Size(
        experts=sum(layer.num_kept for layer in chosen.layers),
        num_bytes=plan.num_bytes,
        expert_bytes=plan.expert_bytes,
    )
    return before, after
