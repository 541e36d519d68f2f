"""From a base checkpoint and a routing map to a pruned checkpoint, in one streaming pass."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import JsonValue

from offline.build.card import card_fields, model_card
from offline.build.companions import copy_companions, copy_read_folders
from offline.build.mtp import MtpChoice, config_of_drafts, decoder_tensors, plan_mtp
from offline.build.quantised import follow
from offline.runs.output import check_output, staged
from vllm_moe_prune.checkpoint import COMPACT_FOLDER, Checkpoint
from vllm_moe_prune.draft_config import own_counts
from vllm_moe_prune.errors import PruneError
from vllm_moe_prune.hub import origin
from vllm_moe_prune.rewrite import Combine, Drop, Mix, Operation, rewrite
from vllm_moe_prune.routing_map import Form, RoutingMap
from vllm_moe_prune.writer import DEFAULT_SHARD_BYTES, Progress, write_shards

Finish = Callable[[Path], object]  # is given an output before that has its name


@dataclass(frozen=True, slots=True)
class BuildPlan:
    """What a build will do, computed from names and shapes alone.

    ``routing_map`` is the given one; its provenance also says what became of MTP layers, and which
    commit the base is where it is the hub's.
    """

    form: Form
    routing_map: RoutingMap
    operations: tuple[Operation, ...]
    num_bytes: int
    base_bytes: int
    expert_bytes: int
    dropped: int
    merged: int


def plan_build(
    base: Checkpoint,
    routing_map: RoutingMap,
    *,
    allow_other: bool = False,
    mtp: MtpChoice | None = None,
) -> BuildPlan:
    """Check that the map fits the base and list the operations; reads no expert weight.

    :param mtp: what becomes of MTP layers; needed if the base has any
    :raises PruneError: if the map does not fit, the base is itself compact, or its MTP layers or
        quantisation settings cannot follow
    """
    if (base.folder / COMPACT_FOLDER).is_dir():
        raise PruneError(
            f"{base.folder} is a compact pruned checkpoint", hint="build from its base model"
        )
    routing_map.check_base(base.fingerprint(), base.expert_counts(), allow_other=allow_other)
    drafts = plan_mtp(base, routing_map, mtp)
    decoder = rewrite(decoder_tensors(base), routing_map, base.layout)
    operations = (*decoder, *drafts.operations)
    follow(base, operations)  # refuses what it cannot
    kept = [op for op in operations if not isinstance(op, Drop)]
    return BuildPlan(
        form=routing_map.form,
        routing_map=_recorded(routing_map, {**(drafts.settings or {}), **origin(base.folder)}),
        operations=operations,
        num_bytes=sum(op.target.num_bytes for op in kept),
        base_bytes=base.num_bytes,
        expert_bytes=sum(op.target.num_bytes for op in kept if _is_expert(base, op.target.name)),
        dropped=len(operations) - len(kept),
        merged=sum(isinstance(op, Combine | Mix) for op in kept),
    )


def _recorded(routing_map: RoutingMap, settings: Mapping[str, JsonValue]) -> RoutingMap:
    """Return the map with further settings in its provenance."""
    if not settings:
        return routing_map
    before = routing_map.provenance
    provenance = before.model_copy(update={"settings": {**before.settings, **settings}})
    return routing_map.model_copy(update={"provenance": provenance})


def _is_expert(base: Checkpoint, name: str) -> bool:
    role = base.layout.classify(name)
    return role is not None and role.kind != "router"


def build(
    base: Checkpoint,
    routing_map: RoutingMap,
    out: Path,
    *,
    force: bool = False,
    allow_other: bool = False,
    mtp: MtpChoice | None = None,
    max_shard_bytes: int = DEFAULT_SHARD_BYTES,
    progress: Progress | None = None,
    beside: Mapping[str, str] | None = None,
    finish: Finish | None = None,
) -> BuildPlan:
    """Write the pruned checkpoint: weights, config, map, tokenizer and model card.

    The result is verified (every tensor present with its shape) before it gets its name.

    :param mtp: as `plan_build`
    :param beside: further text files to put into ``out``, name -> content
    :param finish: is given the folder with all of this, before that becomes ``out``
    :raises PruneError: if the map does not fit, ``out`` exists, or the disk is full
    """
    check_output(out, force=force, inputs=(base.folder,))
    plan = plan_build(base, routing_map, allow_other=allow_other, mtp=mtp)
    write_checkpoint(
        base,
        plan.operations,
        base,
        plan.routing_map,
        out,
        force=force,
        max_shard_bytes=max_shard_bytes,
        progress=progress,
        beside=beside,
        finish=finish,
    )
    return plan


def write_checkpoint(
    source: Checkpoint,
    operations: Sequence[Operation],
    base: Checkpoint,
    routing_map: RoutingMap,
    out: Path,
    *,
    force: bool = False,
    max_shard_bytes: int = DEFAULT_SHARD_BYTES,
    progress: Progress | None = None,
    beside: Mapping[str, str] | None = None,
    finish: Finish | None = None,
) -> None:
    """Write what the operations make of ``source``, with all else that the base's folder has.

    :param base: the model that ``routing_map`` is for; ``source`` itself unless that was trained
    :param beside, finish: as `build`
    :raises PruneError: if ``out`` exists, the disk is full or the result is not as planned
    """
    check_output(out, force=force, inputs=(source.folder, base.folder))
    config, quantiser_files = follow(base, operations)
    with staged(out, force=force) as partial:
        weights = partial / COMPACT_FOLDER if routing_map.form == "compact" else partial
        weights.mkdir(exist_ok=True)
        write_shards(
            source, operations, weights, max_shard_bytes=max_shard_bytes, progress=progress
        )
        copy_companions(base.folder, partial)
        copy_read_folders(base.folder, partial)
        pruned = pruned_config(config, base, routing_map, operations)
        (partial / "config.json").write_text(json.dumps(pruned, indent=2) + "\n")
        inherited, exact = card_fields(base.folder), base.layout.slices
        drafts = own_counts(pruned, base.layout)
        card = model_card(
            base.name, routing_map, routing_map.form, inherited, slices=exact, drafts=drafts
        )
        (partial / "README.md").write_text(card)
        routing_map.save(partial)
        for name, content in {**quantiser_files, **(beside or {})}.items():
            (partial / name).write_text(content)
        _verify(partial, operations)
        if finish is not None:
            finish(partial)


def pruned_config(
    config: Mapping[str, Any],
    base: Checkpoint,
    routing_map: RoutingMap,
    operations: Sequence[Operation],
) -> dict[str, Any]:
    """Return config.json with the largest counts; per-layer counts live in the map alone."""
    config = base.layout.with_counts(config, routing_map.max_kept, routing_map.max_top_k)
    return config_of_drafts(config, base, routing_map, operations)


def _verify(folder: Path, operations: Sequence[Operation]) -> None:
    written = Checkpoint.open(folder).tensors
    expected = {op.target.name: op.target for op in operations if not isinstance(op, Drop)}
    if written != expected:
        wrong = min(
            n for n in expected.keys() | written.keys() if expected.get(n) != written.get(n)
        )
        raise PruneError(f"verification failed: tensor {wrong} is not as planned", hint="report it")
