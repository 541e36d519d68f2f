"""What a line of the log holds gives back the very map and the very result."""

from __future__ import annotations

import base64
import json
import zlib
from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from offline.fitness.log_lines import map_to_json, result_from_json, result_to_json
from offline.tasks.results import ItemResult, TaskResult
from tests.vllm_moe_prune.bare import BASE, MERGED, layer_fields, map_of
from vllm_moe_prune.layer_map import LayerMap, Selection
from vllm_moe_prune.provenance import Provenance
from vllm_moe_prune.routing_map import RoutingMap

BY_HAND = Provenance(method="by hand")


def rebuilt(routing_map: RoutingMap) -> RoutingMap:
    """The map that a line says, read as its docstring describes it."""
    layers: list[LayerMap] = []
    matrices: dict[str, Any] = {}

    def unpack(selection: list[int] | str, shape: tuple[int, int]) -> Selection:
        if not isinstance(selection, str):
            return Selection(kept=tuple(selection))
        values = np.frombuffer(zlib.decompress(base64.b64decode(selection)), "<f4")
        name = f"matrix.{len(matrices)}"
        matrices[name] = values.reshape(shape).astype(np.float32)
        return Selection(matrix=name)

    for entry in json.loads(json.dumps(map_to_json(routing_map))):
        numbers = entry.pop("layers")
        shape = (entry["num_kept"], entry["num_experts"])
        for part in {"experts", "router_rows"} & entry.keys():
            entry[part] = unpack(entry[part], shape)
        layers += [LayerMap(layer=number, **entry) for number in numbers]
    return RoutingMap.build(
        model_type="mixtral",
        base=BASE,
        layers=tuple(sorted(layers, key=lambda layer: layer.layer)),
        provenance=BY_HAND,
        matrices=matrices,
    )


def merged(layers: range, w_em: Any, w_rm: Any) -> RoutingMap:
    fields = [MERGED | {"layer": layer} for layer in layers]
    return map_of(*fields, matrices={"em": w_em, "rm": w_rm})


def test_one_hot_layers_that_are_alike_are_written_once() -> None:
    alike = [layer_fields(layer) for layer in (0, 1, 3)]
    other = layer_fields(2, top_k=1, router="mapped", router_rows={"kept": [1, 6, 3]})
    routing_map = map_of(alike[0], alike[1], other, alike[2])
    entries = map_to_json(routing_map)
    assert [entry["layers"] for entry in entries] == [[0, 1, 3], [2]]
    assert entries[0]["experts"] == [1, 3, 6]
    again = rebuilt(routing_map)
    assert again.layers == routing_map.layers
    assert again.digest() == routing_map.digest()


@given(seed=st.integers(0, 2**32 - 1), scale=st.sampled_from([1e-30, 1.0, 1e30]))
def test_matrices_come_back_bit_by_bit(seed: int, scale: float) -> None:
    w_em, w_rm = np.random.default_rng(seed).normal(0, scale, (2, 2, 4)).astype(np.float32)
    routing_map = merged(range(3), w_em, w_rm)
    again = rebuilt(routing_map)
    assert again.digest() == routing_map.digest()
    assert (again.expert_matrix(again.layers[2]) == w_em).all()
    assert (again.router_matrix(again.layers[2]) == w_rm).all()


def test_a_group_of_layers_costs_one_matrix() -> None:
    w_em, w_rm = np.random.default_rng(0).normal(size=(2, 2, 4))
    one, many = (len(json.dumps(map_to_json(merged(range(n), w_em, w_rm)))) for n in (1, 8))
    assert many < one + 40


@given(
    values=st.lists(
        st.tuples(
            st.floats(0, 1),
            st.none() | st.floats(allow_nan=False),
            st.integers(0, 3) | st.text(),
        ),
        min_size=1,
    )
)
def test_results_come_back_exactly(values: list[tuple[float, float | None, int | str]]) -> None:
    items = tuple(ItemResult(f"é{n}", *value) for n, value in enumerate(values))
    result = TaskResult("one", "search", items, tokens=12, seconds=0.1, unfinished=len(items) % 3)
    assert result_from_json("one", json.loads(json.dumps(result_to_json(result)))) == result
