"""What a build does with MTP layers (multi-token prediction), which draft tokens for the others.

A routing map says nothing of them: transformers does not load them, so nothing is known of what
their experts do. Whoever builds says what becomes of them, because no answer suits everybody.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import JsonValue

from vllm_moe_prune.checkpoint import Checkpoint
from vllm_moe_prune.completeness import matrices_of, missing_tensors
from vllm_moe_prune.draft_config import (
    own_counts,
    promised_drafts,
    with_own_counts,
    without_drafts,
)
from vllm_moe_prune.errors import PruneError
from vllm_moe_prune.layer_map import LayerMap, Selection
from vllm_moe_prune.layout import MoeLayout
from vllm_moe_prune.rewrite import Copy, Drop, Operation, TensorInfo, expert_counts, rewrite
from vllm_moe_prune.routing_map import RoutingMap

MtpChoice = Literal["keep", "prune", "drop"]
MTP_HELP = (
    "what becomes of MTP (draft) layers, if the base has any: drop leaves them out, prune keeps as "
    "many experts as the other layers do, keep copies them with all of theirs"
)
# The criterion that needs nothing but the gate: RWN of docs/criteria.md, the lowest dropped first.
_CRITERION = "min-rwn"
_FLOATS = ("F64", "F32", "F16", "BF16")
_OF_EXPERTS = re.compile(r"(?<!\w)experts[._]")


@dataclass(frozen=True, slots=True)
class MtpPlan:
    """Operations on the tensors of MTP layers, and what the provenance says of the choice."""

    operations: tuple[Operation, ...] = ()
    settings: Mapping[str, JsonValue] | None = None


@dataclass(frozen=True, slots=True)
class DraftLayers:
    """The draft layers of a checkpoint: what its config promises, and what its files have.

    ``promised`` is key of config.json -> count, and ``experts`` number of a layer -> experts.
    """

    promised: Mapping[str, int]
    layers: tuple[int, ...]
    experts: Mapping[int, int]

    @classmethod
    def of(cls, checkpoint: Checkpoint) -> DraftLayers:
        """Look through names and shapes.

        :raises PruneError: if a draft layer has experts under names that are not known
        """
        tensors = _tensors(checkpoint)
        layout = _layout(checkpoint, tensors)
        numbers = {layout.place(name)[0] for name in tensors} - {-1} if layout else set()
        promised = promised_drafts(checkpoint.config, checkpoint.layout)
        return cls(promised, tuple(sorted(numbers)), _expert_counts(checkpoint, tensors))

    def missing(self) -> str | None:
        """Say that config.json promises more layers than there are; None if it does not."""
        most = max(self.promised.values(), default=0)
        if most <= len(self.layers):
            return None
        found = f"{len(self.layers)} of them" if self.layers else "none"
        keys = ", ".join(f"{key}: {count}" for key, count in self.promised.items())
        return (
            f"config.json promises {most} MTP (draft) layer{'s' * (most > 1)} ({keys}), and the "
            f"files have {found}: --mtp drop sets 0, else readers that draft look for them"
        )


def notes(base: Checkpoint, choice: MtpChoice | None, routing_map: RoutingMap) -> list[str]:
    """Say what whoever builds should know of the draft layers: a line for each."""
    if choice == "drop":
        return []
    drafts = DraftLayers.of(base)
    said = [drafts.missing()]
    if choice == "keep" and (wider := set(drafts.experts.values()) - {routing_map.max_kept}):
        said.append(
            f"MTP (draft) layers keep {max(wider)} experts, the others at most "
            f"{routing_map.max_kept}: vLLM drafts with them by --load-format pruned_moe alone"
        )
    return [one for one in said if one is not None]


def check_choice(base: Checkpoint, choice: MtpChoice | None, num_kept: int | None = None) -> None:
    """Refuse a base with MTP layers without a choice, or with one that cannot work.

    :param num_kept: E' of the layers that keep most, None if that is not known yet
    :raises PruneError: saying what can be chosen, or what in its place: also if MTP layers have
        fewer experts than the others keep
    """
    tensors = _tensors(base)
    if tensors and choice is None:
        raise PruneError(
            f"{base.folder} has MTP (draft) layers ({len(tensors)} tensors), and what becomes of "
            "them is yours to say",
            hint="--mtp drop leaves them out: no speculative decoding with them; --mtp prune keeps "
            "as many of their experts as other layers keep, by the norm of their gate's rows; "
            "--mtp keep copies them with all of theirs: they draft with --load-format pruned_moe",
        )
    if choice not in ("keep", "prune"):
        return
    counts = _expert_counts(base, tensors)
    if choice == "prune" and num_kept is not None:
        for layer, count in counts.items():
            _check_prunable(base, layer, count, num_kept)
    if choice == "keep" and len(set(counts.values())) > 1:
        raise PruneError(
            f"--mtp keep: MTP layers have {', '.join(map(str, counts.values()))} experts, and "
            "vLLM builds all of them with one number",
            hint="--mtp prune or --mtp drop",
        )


def plan_mtp(base: Checkpoint, routing_map: RoutingMap, choice: MtpChoice | None) -> MtpPlan:
    """Plan what becomes of a base's MTP layers; reads their gates to prune them.

    :raises PruneError: as `check_choice`, or if they have fewer experts than the others keep
    """
    check_choice(base, choice, routing_map.max_kept)
    tensors = _tensors(base)
    if choice is None or not tensors:
        # Without tensors to drop there is a promise to take back.
        told = choice == "drop" and bool(promised_drafts(base.config, base.layout))
        return MtpPlan(settings={"mtp": "drop"} if told else None)
    if choice == "drop":
        return MtpPlan(tuple(map(Drop, tensors.values())), {"mtp": choice})
    counts = _expert_counts(base, tensors)
    if choice == "keep" or not counts:
        kept = tuple(Copy(name, info) for name, info in tensors.items())
        return MtpPlan(kept, {"mtp": choice})
    return _pruned(base, routing_map, tensors, counts)


def _pruned(
    base: Checkpoint,
    routing_map: RoutingMap,
    tensors: Mapping[str, TensorInfo],
    counts: Mapping[int, int],
) -> MtpPlan:
    layout = _layout(base, tensors)
    assert layout is not None
    lacking = missing_tensors(matrices_of(tensors, layout), layout, counts)
    layers = tuple(
        _layer_map(base, layout, layer, count, routing_map, lacking.get(layer, ()))
        for layer, count in counts.items()
    )
    own = RoutingMap.build(
        model_type=routing_map.model_type,
        base=routing_map.base,
        num_groups=routing_map.num_groups,
        layers=layers,
        provenance=routing_map.provenance,
    )
    ids: dict[str, JsonValue] = {
        str(one.layer): list[JsonValue](one.experts.kept or ()) for one in layers
    }
    settings: dict[str, JsonValue] = {
        "mtp": "prune",
        "mtp_criterion": _CRITERION,
        "mtp_kept": ids,
    }
    return MtpPlan(tuple(rewrite(tensors, own, layout)), settings)


def config_of_drafts(
    config: Mapping[str, Any],
    base: Checkpoint,
    routing_map: RoutingMap,
    operations: Iterable[Operation],
) -> dict[str, Any]:
    """Return config.json with what it must say of the draft layers that are left.

    :param config: with the counts of all other layers
    """
    targets = (op.target for op in operations if not isinstance(op, Drop))
    left = {info.name: info for info in targets if base.layout.is_mtp(info.name)}
    there_were = bool(_tensors(base))
    if not left and (there_were or routing_map.provenance.settings.get("mtp") == "drop"):
        return without_drafts(config, base.layout, there_were=there_were)
    count = next(iter(_expert_counts(base, left).values()), routing_map.max_kept)
    if count == routing_map.max_kept:
        return with_own_counts(config, base.layout, None)
    before = own_counts(base.config, base.layout)
    top_k = before[1] if before else base.layout.top_k(base.config)
    return with_own_counts(config, base.layout, (count, top_k))


def decoder_tensors(base: Checkpoint) -> dict[str, TensorInfo]:
    """Return all tensors but those of MTP layers, name -> info."""
    return _where(base, lambda name: not base.layout.is_mtp(name))


def _tensors(base: Checkpoint) -> dict[str, TensorInfo]:
    return _where(base, base.layout.is_mtp)


def _layout(base: Checkpoint, tensors: Mapping[str, TensorInfo]) -> MoeLayout | None:
    """Return the layout of the draft layers, which may have another form than the others.

    None for a family that is known without any.
    """
    if base.layout.mtp_layer is None:
        return None
    return base.layout.mtp_layout().settled(tensors)


def _where(base: Checkpoint, wanted: Callable[[str], bool]) -> dict[str, TensorInfo]:
    return {name: info for name, info in base.tensors.items() if wanted(name)}


def _expert_counts(base: Checkpoint, tensors: Mapping[str, TensorInfo]) -> dict[int, int]:
    """Return number of an MTP layer -> experts; empty where they have none (Ernie).

    :raises PruneError: for experts that would be copied as they are because nothing knows them
    """
    layout = _layout(base, tensors)
    known = {name for name in tensors if layout and layout.classify(name) is not None}
    unknown = next((one for one in tensors if one not in known and _OF_EXPERTS.search(one)), None)
    if unknown is not None:
        where = layout.layer.format(layer="N") if layout else "none"
        raise PruneError(
            f"{unknown} looks like experts of an MTP (draft) layer, and those of a "
            f"{base.layout.model_type} model are known as {where}",
            hint="--mtp drop, or the names that the model was released with",
        )
    return expert_counts(tensors, layout) if layout and known else {}


def _check_prunable(base: Checkpoint, layer: int, count: int, keep: int) -> None:
    groups = base.layout.num_groups(base.config)
    if count < keep or count % groups or keep % groups:
        raise PruneError(
            f"--mtp prune: MTP layer {layer} has {count} experts in {groups} groups, of which "
            f"{keep} cannot be kept",
            hint="--mtp drop, or --mtp keep for all of them",
        )
    layout = _layout(base, _tensors(base))
    assert layout is not None
    name = layout.router_name(layer)
    if base.tensors[name].dtype not in _FLOATS:  # rows may have scales
        raise PruneError(
            f"--mtp prune: the gate {name} is quantised", hint="--mtp drop or --mtp keep"
        )


def _layer_map(
    base: Checkpoint,
    layout: MoeLayout,
    layer: int,
    count: int,
    routing_map: RoutingMap,
    lacking: Iterable[int],
) -> LayerMap:
    keep, groups = routing_map.max_kept, routing_map.num_groups
    norms = base.tensor(layout.router_name(layer)).double().norm(dim=1)  # of [E, D]
    # Of zero experts (LongCat's) there are rows of the gate after those of the others.
    norms = norms[:count]
    norms[list(lacking)] = -1.0  # experts that lack a tensor cannot stay while others can
    norms = norms.reshape(groups, -1)
    best = norms.argsort(dim=1, descending=True, stable=True)[:, : keep // groups].tolist()
    kept = sorted(
        group * (count // groups) + expert for group, ids in enumerate(best) for expert in ids
    )
    return LayerMap(
        layer=layer,
        num_experts=count,
        num_kept=keep,
        top_k=routing_map.max_top_k,
        experts=Selection(kept=tuple(kept)),
    )
