"""Each rule for one layer, with the line that a user reads when it is broken."""

from __future__ import annotations

from typing import Any

import pytest

from tests.vllm_moe_prune.bare import layer_fields, map_of
from vllm_moe_prune.errors import PruneError
from vllm_moe_prune.layer_map import LayerMap, Selection

BROKEN = [
    ({"experts": {"kept": [1, 3, 3]}}, "layer 0: experts: expert 3 is listed twice"),
    ({"experts": {"kept": [1, 3, 8]}}, "layer 0: experts: expert 8 is out of range 0..7"),
    ({"experts": {"kept": [1, 3, -1]}}, "layer 0: experts: expert -1 is out of range 0..7"),
    ({"experts": {"kept": [1, 3]}}, "layer 0: experts lists 2 experts but num_kept is 3"),
    ({"top_k": 4}, "layer 0: top_k 4 is more than the 3 experts kept"),
    ({"num_kept": 9}, "layer 0: num_kept 9 is more than num_experts 8"),
    (
        {"experts": {"matrix": "m"}},
        "layer 0: a sliced router needs the expert ids of its rows (`router_rows.kept`); "
        "a matrix needs `router: mapped`",
    ),
    (
        {"router_rows": {"kept": [1, 3, 3]}, "router": "mapped"},
        "layer 0: router_rows: expert 3 is listed twice",
    ),
    (
        {"experts": {"kept": [1, 3, 6], "matrix": "m"}},
        "layers.0.experts: give either `kept` (expert ids) or `matrix` (a name), not both",
    ),
    (
        {"experts": {}},
        "layers.0.experts: give either `kept` (expert ids) or `matrix` (a name), not both",
    ),
    ({"router": "folded"}, "layers.0.router: Input should be 'sliced' or 'mapped'"),
    ({"colour": 1}, "layers.0.colour: Extra inputs are not permitted"),
    ({"top_k": 0}, "layers.0.top_k: Input should be greater than or equal to 1"),
    ({"layer": -1}, "layers.0.layer: Input should be greater than or equal to 0"),
]


@pytest.mark.parametrize(("change", "message"), BROKEN, ids=[text for _, text in BROKEN])
def test_a_broken_rule_is_one_line_that_names_layer_and_rule(
    change: dict[str, Any], message: str
) -> None:
    with pytest.raises(PruneError) as caught:
        map_of(layer_fields(**change))
    assert caught.value.message == f"routing map: {message}"


def test_the_line_names_the_layer_that_is_wrong_and_not_its_row() -> None:
    with pytest.raises(PruneError, match=r"layer 7: top_k 9 is more than the 3 experts kept$"):
        map_of(layer_fields(2), layer_fields(7, top_k=9))


def test_a_gate_keeps_all_rows_if_mapped_and_only_the_kept_ones_if_sliced() -> None:
    sliced = LayerMap.model_validate(layer_fields())
    mapped = LayerMap.model_validate(layer_fields(router="mapped"))
    assert (sliced.gate_rows, mapped.gate_rows) == (3, 8)


def test_the_router_follows_the_experts_where_no_rows_are_given() -> None:
    layer = LayerMap.model_validate(layer_fields())
    assert layer.router_selection == Selection(kept=(1, 3, 6))
    other = LayerMap.model_validate(layer_fields(router_rows={"kept": [0, 1, 2]}))
    assert other.router_selection == Selection(kept=(0, 1, 2))
