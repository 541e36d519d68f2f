"""What a build does with MTP layers (multi-token prediction), which draft tokens for the others.

A routing map says nothing of them: transformers does not load them, so nothing is known of what
their experts do. Whoever builds says what becomes of them, because no answer suits everybody.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

from pydantic import JsonValue

from vllm_moe_prune.checkpoint import Checkpoint
from vllm_moe_prune.errors import PruneError
from vllm_moe_prune.layer_map import LayerMap, Selection
from vllm_moe_prune.layout import MoeLayout
from vllm_moe_prune.rewrite import Copy, Drop, Operation, TensorInfo, expert_counts, rewrite
from vllm_moe_prune.routing_map import RoutingMap

MtpChoice = Literal["keep", "prune", "drop"]
MTP_HELP = (
    "what becomes of MTP (draft) layers, if the base has any: drop leaves them out, prune keeps as "
    "many experts as the other layers do, keep copies them"
)
# The criterion that needs nothing but the gate: RWN of docs/criteria.md, the lowest dropped first.
_CRITERION = "min-rwn"
_FLOATS = ("F64", "F32", "F16", "BF16")


@dataclass(frozen=True, slots=True)
class MtpPlan:
    """Operations on the tensors of MTP layers, and what the provenance says of the choice."""

    operations: tuple[Operation, ...] = ()
    settings: Mapping[str, JsonValue] | None = None


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
            "--mtp keep copies them, possible where a layer keeps all experts",
        )
    if choice not in ("keep", "prune") or num_kept is None:
        return
    for layer, count in _expert_counts(base, tensors).items():
        if choice == "prune":
            _check_prunable(base, layer, count, num_kept)
        elif count != num_kept:
            raise PruneError(
                f"--mtp keep: MTP layer {layer} has {count} experts and config.json has one number "
                f"for all layers, which becomes {num_kept}: vLLM could not load it",
                hint="--mtp prune or --mtp drop",
            )


def plan_mtp(base: Checkpoint, routing_map: RoutingMap, choice: MtpChoice | None) -> MtpPlan:
    """Plan what becomes of a base's MTP layers; reads their gates to prune them.

    :raises PruneError: as `check_choice`, or if they have fewer experts than the others keep
    """
    check_choice(base, choice, routing_map.max_kept)
    tensors = _tensors(base)
    if not tensors or choice is None:
        return MtpPlan()
    if choice == "drop":
        return MtpPlan(tuple(map(Drop, tensors.values())), {"mtp": choice})
    counts = _expert_counts(base, tensors)
    if choice == "keep" or not counts:
        kept = tuple(Copy(name, info) for name, info in tensors.items())
        return MtpPlan(kept, {"mtp": choice})
    layout = _layout(base, tensors)
    layers = tuple(_layer_map(base, layer, count, routing_map) for layer, count in counts.items())
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
    settings: dict[str, JsonValue] = {"mtp": choice, "mtp_criterion": _CRITERION, "mtp_kept": ids}
    return MtpPlan(tuple(rewrite(tensors, own, layout)), settings)


def decoder_tensors(base: Checkpoint) -> dict[str, TensorInfo]:
    """Return all tensors but those of MTP layers, name -> info."""
    return _where(base, lambda name: not base.layout.is_mtp(name))


def _tensors(base: Checkpoint) -> dict[str, TensorInfo]:
    return _where(base, base.layout.is_mtp)


def _layout(base: Checkpoint, tensors: Mapping[str, TensorInfo]) -> MoeLayout:
    """Return the layout of the draft layers, which may have another form than the others."""
    return base.layout.mtp_layout().settled(tensors)


def _where(base: Checkpoint, wanted: Callable[[str], bool]) -> dict[str, TensorInfo]:
    return {name: info for name, info in base.tensors.items() if wanted(name)}


def _expert_counts(base: Checkpoint, tensors: Mapping[str, TensorInfo]) -> dict[int, int]:
    """Return number of an MTP layer -> experts; empty where they have none (Ernie)."""
    if not tensors:
        return {}
    layout = _layout(base, tensors)
    if all(layout.classify(name) is None for name in tensors):
        return {}
    return expert_counts(tensors, layout)


def _check_prunable(base: Checkpoint, layer: int, count: int, keep: int) -> None:
    groups = base.layout.num_groups(base.config)
    if count < keep or count % groups or keep % groups:
        raise PruneError(
            f"--mtp prune: MTP layer {layer} has {count} experts in {groups} groups, of which "
            f"{keep} cannot be kept",
            hint="--mtp drop",
        )
    name = _layout(base, _tensors(base)).router_name(layer)
    if base.tensors[name].dtype not in _FLOATS:  # rows may have scales
        raise PruneError(f"--mtp prune: the gate {name} is quantised", hint="--mtp drop")


def _layer_map(base: Checkpoint, layer: int, count: int, routing_map: RoutingMap) -> LayerMap:
    keep, groups = routing_map.max_kept, routing_map.num_groups
    name = _layout(base, _tensors(base)).router_name(layer)
    norms = base.tensor(name).double().norm(dim=1).reshape(groups, -1)  # of [E, D]
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
