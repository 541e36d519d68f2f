"""A plan writes every tensor of the pruned model once and accounts for every tensor of the base."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.vllm_moe_prune.bare import MIXTRAL, infos, layer_fields, map_of, routing_maps
from vllm_moe_prune.errors import PruneError
from vllm_moe_prune.rewrite import (
    Combine,
    Copy,
    Drop,
    Operation,
    Slice,
    TensorInfo,
    expert_counts,
    rewrite,
)
from vllm_moe_prune.routing_map import RoutingMap

FAST = settings(max_examples=25, deadline=None)
SHAPES = st.tuples(st.integers(1, 3), st.integers(1, 6))


def plan(routing_map: RoutingMap, base: dict[str, TensorInfo]) -> list[Operation]:
    return list(rewrite(base, routing_map, MIXTRAL))


def targets(operations: list[Operation]) -> list[TensorInfo]:
    return [op.target for op in operations if not isinstance(op, Drop)]


@st.composite
def bases(
    draw: st.DrawFn, *, with_matrices: bool = False
) -> tuple[dict[str, TensorInfo], RoutingMap]:
    layers, experts = draw(SHAPES)
    base = infos(layers, experts, draw(st.sampled_from(["F32", "BF16", "F16"])))
    maps = routing_maps(layers=layers, experts=experts, with_matrices=with_matrices)
    return base, draw(maps)


@FAST
@given(bases(with_matrices=True))
def test_every_target_once_and_experts_numbered_without_gaps(
    case: tuple[dict[str, TensorInfo], RoutingMap],
) -> None:
    base, routing_map = case
    made = {info.name: info for info in targets(plan(routing_map, base))}
    names = [info.name for info in targets(plan(routing_map, base))]
    assert len(names) == len(set(names))
    assert expert_counts(made, MIXTRAL) == {m.layer: m.num_kept for m in routing_map.layers}
    for layer in routing_map.layers:
        assert MIXTRAL.router_name(layer.layer) in names
        for expert in range(layer.num_kept):
            for projection in MIXTRAL.projections:
                assert MIXTRAL.expert_name(layer.layer, expert, projection) in names


@FAST
@given(bases())
def test_one_hot_maps_move_drop_and_slice_and_account_for_every_tensor(
    case: tuple[dict[str, TensorInfo], RoutingMap],
) -> None:
    base, routing_map = case
    operations = plan(routing_map, base)
    sources = [op.source for op in operations if isinstance(op, Copy | Slice)]
    dropped = [op.source.name for op in operations if isinstance(op, Drop)]
    assert sorted([*sources, *dropped]) == sorted(base)
    counts = {layer.layer: layer for layer in routing_map.layers}
    assert len(dropped) == 3 * sum(m.num_experts - m.num_kept for m in routing_map.layers)
    for op in operations:
        if isinstance(op, Drop):
            continue
        role = MIXTRAL.classify(op.target.name)
        if role is not None and role.kind == "expert":
            kept = counts[role.layer].experts.kept
            assert kept is not None and role.expert is not None
            projection = op.target.name.split(".")[-2]
            old = MIXTRAL.expert_name(role.layer, kept[role.expert], projection)
            assert op == Copy(old, TensorInfo(op.target.name, base[old].dtype, base[old].shape))
        elif role is None:
            assert op == Copy(op.target.name, base[op.target.name])


@FAST
@given(bases(with_matrices=True))
def test_expert_bytes_are_the_kept_share_in_every_layer(
    case: tuple[dict[str, TensorInfo], RoutingMap],
) -> None:
    base, routing_map = case
    operations = plan(routing_map, base)
    for layer in routing_map.layers:

        def expert_bytes(found: list[TensorInfo], number: int = layer.layer) -> int:
            return sum(
                info.num_bytes
                for info in found
                if (r := MIXTRAL.classify(info.name)) and (r.kind, r.layer) == ("expert", number)
            )

        before, after = expert_bytes(list(base.values())), expert_bytes(targets(operations))
        assert after * layer.num_experts == before * layer.num_kept


@FAST
@given(bases(with_matrices=True))
def test_a_sliced_gate_keeps_the_rows_of_its_experts_and_a_mapped_one_all(
    case: tuple[dict[str, TensorInfo], RoutingMap],
) -> None:
    base, routing_map = case
    operations = {op.target.name: op for op in plan(routing_map, base) if not isinstance(op, Drop)}
    for layer in routing_map.layers:
        operation = operations[MIXTRAL.router_name(layer.layer)]
        assert operation.target.shape == (layer.gate_rows, 4)
        rows = layer.router_selection.kept
        if layer.router == "sliced" and rows != tuple(range(layer.num_experts)):
            assert isinstance(operation, Slice)
            assert operation.rows == rows
        else:
            assert operation == Copy(operation.target.name, base[operation.target.name])


MERGED: dict[str, Any] = {
    "num_experts": 3,
    "num_kept": 2,
    "top_k": 1,
    "experts": {"matrix": "em"},
    "router": "mapped",
    "router_rows": {"kept": [0, 1]},
}


def test_a_merge_takes_the_coefficients_of_its_row_for_all_projections_alike() -> None:
    matrix = np.array([[0.25, 0.0, 0.75], [0.0, 0.0, -1.5]], np.float32)
    routing_map = map_of(layer_fields(**MERGED), matrices={"em": matrix})
    operations = plan(routing_map, infos(1, 3))
    combined = {op.target.name: op for op in operations if isinstance(op, Combine)}
    assert len(combined) == 2 * 3
    for projection in ("w1", "w2", "w3"):
        old = [MIXTRAL.expert_name(0, expert, projection) for expert in range(3)]
        assert combined[old[0]].sources == (old[0], old[2])
        assert combined[old[0]].coefficients == (0.25, 0.75)
        assert combined[old[1]].sources == (old[2],)
        assert combined[old[1]].coefficients == (-1.5,)
    dropped = {op.source.name for op in operations if isinstance(op, Drop)}
    assert dropped == {MIXTRAL.expert_name(0, 1, p) for p in MIXTRAL.projections}


def test_experts_of_unequal_shapes_move_but_do_not_merge() -> None:
    name = MIXTRAL.expert_name(0, 2, "w1")
    base = infos(1, 3)
    base[name] = replace(base[name], shape=(5, 4))
    routing_map = map_of(layer_fields(**MERGED), matrices={"em": np.ones((2, 3))})
    with pytest.raises(PruneError, match=rf"{name} has shape \[5, 4\].*cannot be merged"):
        plan(routing_map, base)
    plan(map_of(layer_fields(num_experts=3, num_kept=1, top_k=1, experts={"kept": [2]})), base)


@pytest.mark.parametrize("dtype", ["F8_E4M3", "I8", "U8", "I32"])
def test_quantised_experts_move_but_do_not_merge(dtype: str) -> None:
    base = infos(1, 3, dtype)
    routing_map = map_of(layer_fields(**MERGED), matrices={"em": np.ones((2, 3))})
    with pytest.raises(PruneError) as caught:
        plan(routing_map, base)
    name = MIXTRAL.expert_name(0, 0, "w1")
    assert caught.value.message == f"tensor {name} is quantised ({dtype}) and cannot be merged"
    one_hot = map_of(layer_fields(num_experts=3, num_kept=2, top_k=1, experts={"kept": [2, 0]}))
    moved = plan(one_hot, base)
    assert {type(op) for op in moved} == {Copy, Slice, Drop}


def test_the_index_must_fit_the_map() -> None:
    kept = layer_fields(num_experts=3, num_kept=2, top_k=1, experts={"kept": [0, 1]})
    base = infos(1, 3)
    expert = MIXTRAL.expert_name(0, 1, "w2")
    for absent in (expert, MIXTRAL.router_name(0)):
        without = {name: info for name, info in base.items() if name != absent}
        with pytest.raises(PruneError) as caught:
            plan(map_of(kept), without)
        assert caught.value.message == f"the checkpoint has no tensor {absent}"
    with pytest.raises(PruneError, match="routing map says nothing of layer 1, which has experts"):
        plan(map_of(kept), infos(2, 3))
    with pytest.raises(PruneError, match="has 3 rows but the routing map says layer 0 has 8"):
        plan(map_of(layer_fields()), base)


def test_a_plan_reads_tensors_in_the_order_of_the_files() -> None:
    base = infos(2, 4)
    kept = {"num_experts": 4, "num_kept": 2, "top_k": 1, "experts": {"kept": [3, 1]}}
    operations = plan(map_of(layer_fields(0, **kept), layer_fields(1, **kept)), base)
    read = [op.source for op in operations if isinstance(op, Copy | Slice)]
    assert read == [name for name in base if name in read]
