"""From an index of tensors and a routing map to the operations that make the pruned checkpoint.

Pure: names, dtypes and shapes in, operations out. No weight is read here, so a plan can be
shown, counted and tested without any.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import replace

import numpy as np

from vllm_moe_prune.completeness import Parts, check_alike, matrices_of, missing_tensors
from vllm_moe_prune.errors import PruneError
from vllm_moe_prune.form import TABLE
from vllm_moe_prune.layer_map import LayerMap
from vllm_moe_prune.layout import MoeLayout
from vllm_moe_prune.operations import (
    COMBINABLE,
    ITEM_BYTES,
    Combine,
    Copy,
    Drop,
    Mix,
    Operation,
    Slice,
    TensorInfo,
)
from vllm_moe_prune.roles import STACKED_PARTS, WEIGHT, Role
from vllm_moe_prune.routing_map import RoutingMap
from vllm_moe_prune.substitutes import check_substitutable

__all__ = [
    "COMBINABLE", "ITEM_BYTES", "Combine", "Copy", "Drop", "Mix", "Operation", "Slice",
    "TensorInfo", "expert_counts", "rewrite",
]  # fmt: skip


def expert_counts(tensors: Mapping[str, TensorInfo], layout: MoeLayout) -> dict[int, int]:
    """Return decoder layer -> number of experts, as the tensors' names and shapes say.

    :raises PruneError: for a router without experts, a gap in the expert numbers or an MoE tensor
        that the layout does not know
    """
    experts: dict[int, set[int]] = {}
    for name, info in tensors.items():
        role = layout.classify(name)
        if role is not None:
            ids = experts.setdefault(role.layer, set())
            if role.expert is not None:
                ids.add(role.expert)
            elif _counts_experts(name, info, role, layout):
                ids.update(range(info.shape[0]))
    for layer, ids in experts.items():
        if ids != set(range(len(ids))) or not ids:
            raise PruneError(f"layer {layer}: experts {sorted(ids)} are not numbered 0..E-1")
    if not experts:
        raise PruneError(
            f"no expert tensors of a {layout.model_type} model were found",
            hint=f"expected {layout.layer.format(layer='N')} with {layout.forms[0].expected()}; "
            "`vmprune inspect MODEL --explain` shows what there is",
        )
    return {layer: len(experts[layer]) for layer in sorted(experts)}


def _counts_experts(name: str, info: TensorInfo, role: Role, layout: MoeLayout) -> bool:
    """Whether a tensor that is of no single expert has as many rows as there are experts."""
    if layout.form(role.layer).flat:
        return name == layout.router_name(role.layer)
    of_all = role.part != WEIGHT and math.prod(info.shape) == 1
    return role.kind == "stacked" and not of_all


def rewrite(
    tensors: Mapping[str, TensorInfo], routing_map: RoutingMap, layout: MoeLayout
) -> Iterator[Operation]:
    """Yield one operation for every tensor of the pruned model and one `Drop` per dropped tensor.

    The parts of a quantised expert move with it. MTP layers are copied: a map says nothing of them.

    :param tensors: the base checkpoint, name -> info, in the order to read it
    :raises PruneError: if the map needs a tensor that is absent, merges quantised experts, or
        substitutes experts of a family in which none can be
    """
    if routing_map.substitutes:
        check_substitutable(layout)
    layers = routing_map.by_layer()
    used = {number: _used(routing_map, layer) for number, layer in layers.items()}
    for info in tensors.values():
        role = layout.classify(info.name)
        if role is None:
            yield Copy(info.name, info)
        elif (layer := layers.get(role.layer)) is None:
            raise PruneError(f"routing map says nothing of layer {role.layer}, which has experts")
        elif role.kind == "router":
            yield _router(info, role, layer, layout)
        elif role.kind == "stacked":
            yield _stacked(info, role, routing_map, layer, layout.form(role.layer).flat)
        elif role.expert not in used[role.layer]:
            yield Drop(info)
        elif (kept := layer.experts.kept) is not None:
            yield _moved_expert(info, role, kept)
    matrices = matrices_of(tensors, layout)
    counts = {number: layer.num_experts for number, layer in layers.items()}
    missing = missing_tensors(matrices, layout, counts)
    for number, layer in layers.items():
        _check_present(tensors, layer, layout)
        also: set[int] = {0} if layer.experts.matrix is not None else set()  # of rows without any
        _check_whole(layer, used[number] | also, missing.get(number, {}))
        if layer.experts.matrix is not None and layout.form(layer.layer).expert is not None:
            yield from _merged_experts(routing_map, layer, layout, matrices[number])


def _used(routing_map: RoutingMap, layer: LayerMap) -> frozenset[int]:
    """Experts that at least one new expert is made of."""
    columns = np.any(routing_map.expert_matrix(layer) != 0, axis=0)
    return frozenset(int(expert) for expert in np.flatnonzero(columns))


def _router(info: TensorInfo, role: Role, layer: LayerMap, layout: MoeLayout) -> Operation:
    """Keep the rows of a gate, or the entries of a bias, that the map keeps."""
    rows = layer.router_selection.kept
    if layer.router == "mapped" and not layout.mappable:
        raise PruneError(
            f"layer {layer.layer}: the router of a {layout.model_type} model cannot be mapped: "
            "more than its scores decides which experts are chosen",
            hint="use a map with sliced routers",
        )
    if layer.router == "mapped":
        rows = tuple(range(layer.num_experts))
    assert rows is not None
    if role.part == TABLE:
        return _table(info, rows, layer)
    if role.part != WEIGHT and math.prod(info.shape) == 1:  # of the whole matrix
        return Copy(info.name, info)
    return _sliced(info, rows, layer, more=layout.zero_experts)


def _table(info: TensorInfo, rows: tuple[int, ...], layer: LayerMap) -> Copy:
    """Copy a table of experts' ids where all of them stay what they are."""
    if rows != tuple(range(layer.num_experts)):
        raise PruneError(
            f"layer {layer.layer}: {info.name} says by token which experts compute it, so that "
            "none of them can go",
            hint=f"keep all {layer.num_experts} experts of this layer",
        )
    return Copy(info.name, info)


def _sliced(
    info: TensorInfo, rows: tuple[int, ...], layer: LayerMap, *, more: int = 0
) -> Operation:
    """Keep rows of a tensor with one for each expert.

    :param more: rows after those of the experts, which stay
    """
    is_row = len(info.shape) == 2 and info.shape[0] == 1 < layer.num_experts
    count = info.shape[1] if is_row else info.shape[0]
    if count != layer.num_experts + more:
        also = f" and {more} without weights" if more else ""
        raise PruneError(
            f"tensor {info.name} has {count} rows but the routing map says "
            f"layer {layer.layer} has {layer.num_experts} experts{also}"
        )
    rows = (*rows, *range(layer.num_experts, count))
    if rows == tuple(range(count)):
        return Copy(info.name, info)
    shape = (1, len(rows)) if is_row else (len(rows), *info.shape[1:])
    return Slice(info.name, TensorInfo(info.name, info.dtype, shape), rows, count)


def _stacked(
    info: TensorInfo, role: Role, routing_map: RoutingMap, layer: LayerMap, flat: bool
) -> Operation:
    """Keep or combine the experts that are a tensor's first dimension."""
    if role.part != WEIGHT and math.prod(info.shape) == 1:  # of all experts
        return Copy(info.name, info)
    # Experts that lie one below the other are so many rows each.
    each = _rows_of_each(info, layer) if flat else 1
    if (kept := layer.experts.kept) is not None:
        one = _sliced(replace(info, shape=(info.shape[0] // each, *info.shape[1:])), kept, layer)
        return _with_rows(one, each) if flat else one
    _check_combinable(info, role.part)
    target = TensorInfo(info.name, info.dtype, (layer.num_kept * each, *info.shape[1:]))
    matrix = routing_map.expert_matrix(layer)
    return Mix(info.name, target, tuple(tuple(float(x) for x in row) for row in matrix))


def _rows_of_each(info: TensorInfo, layer: LayerMap) -> int:
    each, rest = divmod(info.shape[0], layer.num_experts)
    if rest:
        raise PruneError(
            f"tensor {info.name} has {info.shape[0]} rows, which {layer.num_experts} experts "
            "cannot share equally"
        )
    return each


def _with_rows(operation: Operation, each: int) -> Operation:
    """Return the operation for a tensor with so many rows for each expert."""
    assert isinstance(operation, Copy | Slice)
    first, *others = operation.target.shape
    return replace(operation, target=replace(operation.target, shape=(first * each, *others)))


def _check_combinable(info: TensorInfo, part: str) -> None:
    if info.dtype not in COMBINABLE or part != WEIGHT:
        raise PruneError(
            f"tensor {info.name} is quantised ({info.dtype}) and cannot be merged",
            hint="merge before quantising, or use a map that only drops experts",
        )


def _moved_expert(info: TensorInfo, role: Role, kept: tuple[int, ...]) -> Copy:
    assert role.expert is not None
    name = role.renumbered(info.name, kept.index(role.expert))
    return Copy(info.name, TensorInfo(name, info.dtype, info.shape))


def _merged_experts(
    routing_map: RoutingMap,
    layer: LayerMap,
    layout: MoeLayout,
    matrices: Mapping[str, Mapping[int, Parts]],
) -> Iterator[Combine]:
    matrix = routing_map.expert_matrix(layer)
    check_alike(matrices.values())
    for new in range(layer.num_kept):
        old = [int(i) for i in np.flatnonzero(matrix[new])] or [0]
        for projection in layout.form(layer.layer).projections:
            for part, info in (item for i in old for item in matrices[projection][i].items()):
                _check_combinable(info, part)
            sources = tuple(layout.expert_name(layer.layer, i, projection) for i in old)
            first = matrices[projection][old[0]][WEIGHT]
            name = layout.expert_name(layer.layer, new, projection)
            target = TensorInfo(name, first.dtype, first.shape)
            yield Combine(sources, target, tuple(float(matrix[new, i]) for i in old))


def _check_present(tensors: Mapping[str, TensorInfo], layer: LayerMap, layout: MoeLayout) -> None:
    """Refuse a layer without its gate, or without what holds all of its experts."""
    wanted = [layout.router_name(layer.layer)]
    for name in layout.stacked_names(layer.layer):
        blocks = [name + part for part in STACKED_PARTS]
        wanted += blocks if any(block in tensors for block in blocks) else [name]
    for name in wanted:
        if name not in tensors:
            raise PruneError(f"the checkpoint has no tensor {name}")


def _check_whole(
    layer: LayerMap, used: frozenset[int], missing: Mapping[int, tuple[str, ...]]
) -> None:
    """Refuse a map that keeps an expert without a tensor that others of its layer have."""
    wrong = sorted(used & missing.keys())
    if wrong:
        also = f", and {len(wrong) - 1} more that are kept in its layer" if wrong[1:] else ""
        raise PruneError(
            f"the checkpoint has no tensor {missing[wrong[0]][0]}",
            hint=f"expert {wrong[0]} of layer {layer.layer}{also} would be served without it: keep "
            "others (`vmprune inspect MODEL` names them, `vmprune plan` drops them first)",
        )
