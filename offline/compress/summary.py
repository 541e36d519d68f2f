"""From a finished run to its `RunResult`."""

from __future__ import annotations

from pathlib import Path

from offline.build.build import BuildPlan
from offline.compress.run import Run
from offline.results.compression import LayerOutcome, Quality, RunResult, Size
from offline.results.lottery import LotteryRecord
from vllm_moe_prune.checkpoint import Checkpoint
from vllm_moe_prune.routing_map import RoutingMap


def result_of(
    run: Run,
    out: Path,
    chosen: RoutingMap,
    usage: dict[int, tuple[int, ...]],
    quality: tuple[Quality, ...],
    pruned_size: Size,
    lottery: LotteryRecord | None = None,
) -> RunResult:
    """Say everything that a run has found.

    :param chosen: the map beside the checkpoint
    :param usage: decoder layer -> tokens that the base routes to each expert [E], search split
    :param lottery: of that method
    """
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
    return RunResult(
        model=run.base.name,
        out=out.name,
        method=run.recipe.method.name,
        task=run.recipe.data.task,
        tasks=run.objective.names,
        fitness=run.objective.measure,
        form=chosen.form,
        summary=chosen.summary(),
        map_digest=chosen.digest(),
        base_size=size_of(run.base),
        pruned_size=pruned_size,
        layers=layers,
        search=tuple(run.search_log),
        quality=quality,
        seconds={stage: round(value, 3) for stage, value in run.seconds.items()},
        provenance=chosen.provenance,
        lottery=lottery,
        text=run.text,
    )


def size_of(checkpoint: Checkpoint) -> Size:
    """Count a checkpoint's experts and bytes."""
    return Size(
        experts=sum(checkpoint.expert_counts().values()),
        num_bytes=checkpoint.num_bytes,
        expert_bytes=checkpoint.expert_bytes(),
    )


def planned_size(routing_map: RoutingMap, plan: BuildPlan) -> Size:
    """Count what a build will write, with the vectors that stand for experts."""
    return Size(
        experts=sum(layer.num_kept for layer in routing_map.layers),
        num_bytes=plan.num_bytes + routing_map.vector_bytes,
        expert_bytes=plan.expert_bytes,
    )
