"""One routing map after another, as one map of the first one's base.

Experts compose as matrices, W_EM = W_EM2 @ W_EM1, and so do the rows of two routers of one kind.
A sliced router is a softmax over its own rows: under a mapped one its scores are those over all E,
each divided by the kept ones' sum. Where the model divides the top-k weights by their sum that
cancels out, and sigmoid scores do not depend on each other; everywhere else the composition would
compute something else and is refused (`MoeLayout.slices`). Where a correction bias also chooses,
routers are never mapped. Groups of a group-limited router compose because
each map keeps equally many experts of every group, in order, which `RoutingMap` checks of the
result again.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from pydantic import JsonValue

from vllm_moe_prune.errors import PruneError
from vllm_moe_prune.layer_map import LayerMap, Selection
from vllm_moe_prune.layout import MoeLayout
from vllm_moe_prune.layouts import layout_of
from vllm_moe_prune.matrices import Matrix
from vllm_moe_prune.provenance import Provenance
from vllm_moe_prune.routing_map import RoutingMap

_THEN = " then "
Composed = tuple[Selection, Matrix | None]


def compose(first: RoutingMap, following: RoutingMap) -> RoutingMap:
    """Return the map that does to the first one's base what both do, one after the other.

    :param following: made for the model that ``first`` makes
    :raises PruneError: if the second does not fit what the first leaves, a sliced router under a
        mapped one cannot be written exactly, or constant vectors stand for experts of either
    """
    _check_fit(first, following)
    layout, after = layout_of({"model_type": first.model_type}), following.by_layer()
    layers, matrices = [], dict[str, Matrix]()
    for entry in first.layers:
        layer, named = _layer(first, following, entry, after[entry.layer], layout)
        layers.append(layer)
        matrices |= named
    return RoutingMap.build(
        model_type=first.model_type,
        base=first.base,
        num_groups=first.num_groups,
        layers=tuple(layers),
        tokens_seen=first.tokens_seen,
        tuned=(*first.tuned, *following.tuned),
        provenance=_provenance(first.provenance, following.provenance),
        matrices=matrices,
    )


def _check_fit(first: RoutingMap, following: RoutingMap) -> None:
    if first.substitutes or following.substitutes:
        raise PruneError(
            "a routing map that substitutes experts neither follows another nor is followed",
            hint="make one map of the base that does both",
        )
    if first.model_type != following.model_type:
        raise PruneError(
            f"a routing map for {following.model_type} cannot follow one for {first.model_type}"
        )
    if first.num_groups != following.num_groups:
        raise PruneError(
            f"the routing maps are for {first.num_groups} and {following.num_groups} router groups"
        )
    made = {entry.layer: entry.num_kept for entry in first.layers}
    taken = {entry.layer: entry.num_experts for entry in following.layers}
    for layer in sorted(made.keys() | taken.keys()):
        if made.get(layer) != taken.get(layer):
            raise PruneError(
                f"layer {layer}: the first routing map makes {made.get(layer, 0)} experts, "
                f"the second is for {taken.get(layer, 0)}",
                hint="the second map must be made for the model that the first one makes",
            )


def _layer(
    first: RoutingMap, following: RoutingMap, a: LayerMap, b: LayerMap, layout: MoeLayout
) -> tuple[LayerMap, dict[str, Matrix]]:
    router = _router(a, b, layout)
    name = f"layers.{a.layer}"
    one, two = first.expert_matrix(a), following.expert_matrix(b)
    experts, w_em = _selection(a.experts, b.experts, one, two, f"{name}.experts")
    rows: Selection | None = None
    w_rm: Matrix | None = None
    if a.router_rows is not None or b.router_rows is not None:
        one, two = first.router_matrix(a), following.router_matrix(b)
        rows, w_rm = _selection(a.router_selection, b.router_selection, one, two, f"{name}.router")
        rows = None if rows == experts else rows
    layer = LayerMap(
        layer=a.layer,
        num_experts=a.num_experts,
        num_kept=b.num_kept,
        top_k=b.top_k,
        experts=experts,
        router=router,
        router_rows=rows,
    )
    named = ((experts, w_em), (rows, w_rm))
    return layer, {s.matrix: m for s, m in named if s is not None and s.matrix and m is not None}


def _router(a: LayerMap, b: LayerMap, layout: MoeLayout) -> Literal["sliced", "mapped"]:
    """Return the composed router's kind.

    :raises PruneError: where a mapped router over a sliced one has no exact form
    """
    if a.router == "mapped":
        return "mapped"
    # All rows, in whatever order: the softmax runs over the same logits.
    whole = a.num_kept == a.num_experts
    if b.router == "mapped" and not whole and not layout.slices:
        raise PruneError(
            f"layer {a.layer}: a mapped router cannot follow a sliced one in {layout.model_type}, "
            "which does not renormalise the top-k weights: scores over the kept experts are no "
            "linear map of the scores over all",
            hint="apply the second map to the checkpoint that the first one made",
        )
    return b.router


def _selection(a: Selection, b: Selection, one: Matrix, two: Matrix, name: str) -> Composed:
    """Return B after A: ids where both have ids, else the product under ``name``.

    :param one: A as a matrix [E', E]
    :param two: B as a matrix [E'', E']
    """
    if a.kept is not None and b.kept is not None:
        return Selection(kept=tuple(a.kept[row] for row in b.kept)), None
    if b.kept is not None:
        product = one[list(b.kept)]
    elif a.kept is not None:
        product = np.zeros((len(two), one.shape[1]), np.float32)
        product[:, list(a.kept)] = two
    else:
        product = (two.astype(np.float64) @ one.astype(np.float64)).astype(np.float32)
    return Selection(matrix=name), product


def _provenance(first: Provenance, following: Provenance) -> Provenance:
    def steps(one: Provenance) -> list[JsonValue]:
        """What a provenance tells of, one entry per map; a composed one tells of several."""
        told = one.settings.get("steps")
        if _THEN in one.method and isinstance(told, list):
            return told
        return [{"method": one.method, "seed": one.seed, "settings": dict(one.settings)}]

    return Provenance.now(
        f"{first.method}{_THEN}{following.method}",
        settings={"steps": [*steps(first), *steps(following)]},
        seed=first.seed,
        data=tuple(dict.fromkeys((*first.data, *following.data))),
    )
