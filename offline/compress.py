"""`vmprune compress`: from a base checkpoint and a task to a pruned checkpoint with its evidence.

base -> engine -> method (search split) -> finalists (selection split) -> routing map, saved
     -> held-out split for base, random, frequency and the chosen map -> build -> result
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from offline.build import BuildPlan, build, plan_build
from offline.choose import choose, count_usage
from offline.device import pick_device
from offline.engines.base import Engine
from offline.evaluations import Evaluations, run_folder
from offline.methods.space import Space
from offline.quality import measure_quality
from offline.recipe import CompressRecipe
from offline.result import RESULT_FILE, LayerOutcome, Quality, RunResult, Size
from offline.run import Reporter, Run, Usage, provenance_of
from offline.staging import check_absent
from offline.tasks.catalog import get_task
from vllm_moe_prune.checkpoint import Checkpoint
from vllm_moe_prune.routing_map import RoutingMap

EngineFactory = Callable[[CompressRecipe], Engine]


def compress(
    recipe: CompressRecipe,
    out: Path,
    *,
    make_engine: EngineFactory,
    reporter: Reporter,
    force: bool = False,
) -> RunResult:
    """Choose experts, measure the choice on held-out items and build the pruned checkpoint.

    A run that was killed continues when the same call is made again; it keeps its log in
    ``OUT.run`` beside ``out``.

    :raises PruneError: for anything in the recipe or the base that cannot work, before any work
    """
    check_absent(out, force=force)
    run = _begin(recipe, out, make_engine, reporter, force=force)
    with run.timed("search"):
        usage = count_usage(run)
        chosen = choose(run, usage)
        chosen.save(run.evaluations.file.parent)
    with run.timed("held-out"):
        quality = measure_quality(run, chosen, usage)
    plan = plan_build(run.base, chosen)
    result = _result(run, out, chosen, usage, quality, plan)
    reporter.stage("writing the checkpoint", plan.num_bytes)
    beside = {RESULT_FILE: result.to_json()}
    build(run.base, chosen, out, force=force, progress=reporter.step, beside=beside)
    return result


def _begin(
    recipe: CompressRecipe,
    out: Path,
    make_engine: EngineFactory,
    reporter: Reporter,
    *,
    force: bool,
) -> Run:
    base = Checkpoint.open(recipe.model)
    space = Space.of(base, recipe.keep, recipe.top_k)
    recipe.num_groups(len(space.layers))  # refuse nonsense before the model is loaded
    task = get_task(recipe.task)
    provenance = provenance_of(recipe, task)
    identity = {
        "recipe": recipe.model_dump(mode="json", exclude={"model", "device"}),
        "base": space.base.model_dump(exclude={"name"}),
        "data": [data.model_dump() for data in provenance.data],
    }
    folder = run_folder(out, identity, force=force)
    reporter.stage("loading the model", 1)
    engine = make_engine(recipe)
    reporter.step()
    evaluations = Evaluations(folder / "evaluations.jsonl", engine)
    return Run(recipe, base, space, task, engine, evaluations, reporter, provenance)


def transformers_engine(recipe: CompressRecipe) -> Engine:
    """Load the base model in transformers on the recipe's device."""
    from offline.engines.transformers import TransformersEngine

    device = pick_device(recipe.device)
    return TransformersEngine(recipe.model, device=device, dtype=recipe.dtype)


def _result(
    run: Run,
    out: Path,
    chosen: RoutingMap,
    usage: Usage,
    quality: tuple[Quality, ...],
    plan: BuildPlan,
) -> RunResult:
    layers = tuple(
        LayerOutcome(
            layer=layer.layer,
            num_experts=layer.num_experts,
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
        task=run.task.name,
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
