"""What a model can keep and activate, and genomes as routing maps."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings

from offline.maps.depth_groups import depth_groups, even_rows, total_kept
from offline.maps.genome import Coefficients, Genome
from offline.maps.map_space import Space
from offline.maps.per_layer import top_k_by_layer
from tests.maps.genomes import Case, cases, read_back
from tests.maps.landscape import space_of
from tests.sample_shapes import shape_of
from vllm_moe_prune.errors import PruneError
from vllm_moe_prune.layer_map import Selection
from vllm_moe_prune.provenance import Provenance
from vllm_moe_prune.routing_map import RoutingMap

BY_HAND = Provenance(method="by hand")
NOISE = np.full((2, 8), 0.25, np.float32)


def space_with(**changes: Any) -> Space:
    """A space of 6 layers with 8 experts each."""
    other = {"num_experts", "num_groups", "topk_group"} & changes.keys()
    experts = {"num_experts": MappingProxyType(dict.fromkeys(range(6), 8))}
    shape = shape_of(**experts | {name: changes.pop(name) for name in other})
    return Space.of(shape, **changes)


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"keep": 9}, "--keep 9: layer 0 has 8 experts"),
    ({"keep": 0}, "--keep 0: layer 0 has 8 experts"),
    ({"keep": 1}, "--top-k 2 does not fit 1 kept experts"),
    ({"keep": 4, "budget": 24}, "--keep and --budget exclude each other"),
    ({"budget": 49}, "--budget 49: the model has 48 experts in all"),
    (
        {"budget": 11},
        "--budget 11 is less than the 12 experts that 6 layers keep at least "
        "(--floor 1, and what --top-k activates)",
    ),
    (
        {"budget": 17, "floor": 3},
        "--budget 17 is less than the 18 experts that 6 layers keep at least "
        "(--floor 3, and what --top-k activates)",
    ),
    ({"budget": 24, "floor": 9}, "--floor 9: layer 0 has 8 experts"),
    (
        {"keep": 2, "top_k": {0: 1, 1: 2, 2: 3, 3: 1, 4: 1, 5: 1}},
        "--top-k 3 in layer 2 does not fit 2 kept experts",
    ),
    ({"top_k": dict.fromkeys(range(6), 9)}, "--top-k 9 does not fit 8 kept experts"),
    (
        {"keep": 4, "num_groups": 4, "topk_group": 2},
        "layer 0: the router takes top-2 from 2 of 4 groups, for which 4 kept experts are too few",
    ),
    (
        {"keep": 4, "num_groups": 2, "top_k": dict.fromkeys(range(6), 3)},
        "layer 0: the router takes top-3 from 1 of 2 groups, for which 4 kept experts are too few",
    ),
    ({"keep": 5, "num_groups": 2}, "layer 0: the router's 2 groups cannot share 5 experts equally"),
    (
        {"budget": 23, "num_groups": 2},
        "--budget 23 is less than the 24 experts that 6 layers keep at least "
        "(--floor 1, and what --top-k activates)",
    ),
]


@pytest.mark.parametrize(("changes", "message"), REFUSED, ids=[m for _, m in REFUSED])
def test_what_a_model_cannot_do_is_one_line(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(PruneError) as caught:
        space_with(**changes)
    assert caught.value.message == message


def test_keeping_all_is_the_default_and_may_be_said_in_three_ways() -> None:
    for changes in ({}, {"keep": 8}, {"budget": 48}):
        space = space_with(**changes, num_groups=4)
        assert space.keeps_all
        assert even_rows(space.groups(2), space.budget) == (8, 8)
    assert not space_with(keep=7).keeps_all
    assert not space_with(budget=47).keeps_all


TOP_K: list[tuple[str, dict[int, int]]] = [
    ("1", {3: 1, 4: 1, 5: 1, 6: 1}),
    ("3-4:1", {3: 1, 4: 1, 5: 2, 6: 2}),
    ("3-4:1,5-6:3", {3: 1, 4: 1, 5: 3, 6: 3}),
    (" 6:1 , 3:4", {3: 4, 4: 2, 5: 2, 6: 1}),
]


@pytest.mark.parametrize(("text", "expected"), TOP_K)
def test_top_k_is_for_all_layers_or_by_layer(text: str, expected: dict[int, int]) -> None:
    assert top_k_by_layer(text, dict.fromkeys((3, 4, 5, 6), 2)) == expected


BAD_TOP_K: list[tuple[str, str]] = [
    ("3-4:1,x", "--top-k: 'x' is neither a number nor LAYER:K nor FIRST-LAST:K"),
    ("", "--top-k: '' is neither a number nor LAYER:K nor FIRST-LAST:K"),
    ("-1", "--top-k: '-1' is neither a number nor LAYER:K nor FIRST-LAST:K"),
    ("3-7:1", "--top-k 3-7:1: no layer 7; layers 3 to 6 have experts"),
    ("0-4:1", "--top-k 0-4:1: no layer 0; layers 3 to 6 have experts"),
    ("5-4:1", "--top-k 5-4:1: 5 is after 4"),
    ("3-4:1,4-6:2", "--top-k 4-6:2: layer 4 is given twice"),
    ("3:0", "--top-k 3:0: a layer activates at least one expert"),
    ("0", "--top-k 0: a layer activates at least one expert"),
]


@pytest.mark.parametrize(("text", "message"), BAD_TOP_K)
def test_a_wrong_top_k_names_the_wrong_part(text: str, message: str) -> None:
    with pytest.raises(PruneError) as caught:
        top_k_by_layer(text, dict.fromkeys((3, 4, 5, 6), 2))
    assert caught.value.message == message


def test_top_k_may_be_given_in_any_form() -> None:
    given: list[tuple[int | str | Mapping[int, int] | None, dict[int, int]]] = [
        (None, {0: 2, 1: 2}), (1, {0: 1, 1: 1}), ("1:1", {0: 2, 1: 1}), ({0: 1}, {0: 1, 1: 2}),
    ]  # fmt: skip
    assert [top_k_by_layer(top_k, {0: 2, 1: 2}) for top_k, _ in given] == [
        wanted for _, wanted in given
    ]
    with pytest.raises(PruneError, match="layer 7 has no experts"):
        top_k_by_layer({7: 1}, {0: 2, 1: 2})


@pytest.mark.parametrize(
    ("layers", "count", "groups"),
    [
        (32, 4, [(0, 7), (8, 15), (16, 23), (24, 31)]),  # the released files' groups
        (32, 32, [(n, n) for n in range(32)]),
        (30, 4, [(0, 6), (7, 13), (14, 20), (21, 29)]),  # the last one takes the remainder
        (2, 4, [(0, 0), (1, 1)]),
        (5, 1, [(0, 4)]),
    ],
)
def test_groups_go_by_depth(layers: int, count: int, groups: list[tuple[int, int]]) -> None:
    found = depth_groups(range(layers), count)
    assert [(group[0], group[-1]) for group in found] == groups
    assert [layer for group in found for layer in group] == list(range(layers))


def test_groups_follow_layer_numbers_not_places() -> None:
    assert depth_groups((3, 4, 5, 6, 7, 8, 9), 3) == ((3, 4), (5, 6), (7, 8, 9))


def test_layers_with_other_expert_counts_do_not_share_a_group() -> None:
    space = space_with(num_experts=dict.fromkeys(range(5), 8) | {5: 16}, keep=4)
    with pytest.raises(PruneError, match="layers 3 and 5 of one depth group have 8 and 16"):
        space.groups(2)
    assert [group.num_experts for group in space.groups()] == [8] * 5 + [16]


def test_a_budget_is_spread_evenly_and_never_exceeded() -> None:
    assert even_rows(space_of(6, budget=24).groups(), 24) == (4,) * 6
    assert even_rows(space_of(6, budget=27).groups(), 27) == (5, 5, 5, 4, 4, 4)
    groups = space_of(7, budget=25).groups(3)  # of 2, 2 and 3 layers
    assert even_rows(groups, 25) == (4, 4, 3)
    assert total_kept((4, 4, 3), groups) == 25


KINDS: list[tuple[str, dict[str, Any], str]] = [
    ("auto", {}, "sliced"),
    ("auto", {"slices": False}, "mapped"),
    ("sliced", {"slices": False}, "sliced"),
    ("mapped", {}, "mapped"),
    ("auto", {"slices": False, "num_groups": 2}, "sliced"),
    ("sliced", {"slices": False, "num_groups": 2}, "sliced"),
]


@pytest.mark.parametrize(("kind", "shape", "expected"), KINDS)
def test_routers_are_of_the_kind_that_is_asked_for(
    kind: Any, shape: dict[str, Any], expected: str
) -> None:
    space = Space.of(shape_of({0: 8, 1: 8}, **shape), 4, router=kind)
    kept = {0: (0, 2, 5, 7), 1: (1, 3, 4, 6)}
    routing_map = space.routing_map(kept, BY_HAND)
    assert [layer.router for layer in routing_map.layers] == [expected] * 2
    assert routing_map.form == ("plain" if expected == "sliced" else "compact")


@pytest.mark.parametrize(
    ("shape", "text"),
    [({"num_groups": 2}, "first chooses among 2 groups"), ({"mappable": False}, "does more than")],
)
def test_a_router_that_cannot_be_mapped_is_not(shape: dict[str, Any], text: str) -> None:
    with pytest.raises(PruneError, match=f"--router mapped: the router of this mixtral .* {text}"):
        Space.of(shape_of({0: 8}, **shape), 4, router="mapped")


def test_a_group_keeps_what_its_hungriest_layer_activates() -> None:
    top_k = dict.fromkeys(range(6), 1) | {2: 5}
    space = space_with(top_k=top_k, budget=14)
    assert [group.least for group in space.groups()] == [1, 1, 5, 1, 1, 1]
    assert [group.least for group in space_with(top_k=top_k, budget=20).groups(2)] == [5, 1]
    with pytest.raises(PruneError, match="--budget 14: 2 depth groups keep at least 18 experts"):
        space.groups(2)


def mapped(coefficients: Coefficients, *, renormalise: bool = True) -> RoutingMap:
    """The map of two layers that share these coefficients."""
    space = space_of(2, 8, coefficients.rows, slices=renormalise)
    return space.genome_map(Genome((coefficients,)), space.groups(1), BY_HAND)


ROWS = Coefficients.one_hot((5, 1), 8).experts
TWICE = Coefficients.one_hot((5, 5), 8).experts
FORMS: list[tuple[Any, Any, bool, tuple[Selection, str, Selection | None]]] = [
    (ROWS, ROWS, True, (Selection(kept=(1, 5)), "sliced", None)),
    (ROWS, ROWS, False, (Selection(kept=(1, 5)), "mapped", None)),
    (ROWS, ROWS[::-1], True, (Selection(kept=(5, 1)), "sliced", Selection(kept=(1, 5)))),
    (ROWS, NOISE, True, (Selection(kept=(5, 1)), "mapped", Selection(matrix="group.0.router"))),
    (NOISE, ROWS, True, (Selection(matrix="group.0.experts"), "sliced", Selection(kept=(5, 1)))),
    (NOISE, ROWS, False, (Selection(matrix="group.0.experts"), "mapped", Selection(kept=(5, 1)))),
    (TWICE, ROWS, True, (Selection(matrix="group.0.experts"), "sliced", Selection(kept=(5, 1)))),
    (
        TWICE,
        TWICE,
        True,
        (Selection(matrix="group.0.experts"), "mapped", Selection(matrix="group.0.router")),
    ),
]


@pytest.mark.parametrize(("w_em", "w_rm", "renormalise", "form"), FORMS)
def test_coefficients_are_written_in_the_simplest_exact_form(
    w_em: Any, w_rm: Any, renormalise: bool, form: tuple[Selection, str, Selection | None]
) -> None:
    routing_map = mapped(Coefficients(w_em, w_rm), renormalise=renormalise)
    for layer in routing_map.layers:
        assert (layer.experts, layer.router, layer.router_rows) == form
    assert set(routing_map.matrices) == {
        s.matrix for s in (form[0], form[2]) if s is not None and s.matrix is not None
    }


def test_pruning_alone_stays_plain_and_merging_is_compact() -> None:
    assert mapped(Coefficients(ROWS, ROWS)).form == "plain"
    assert mapped(Coefficients(NOISE, ROWS)).form == "plain"
    assert mapped(Coefficients(ROWS, NOISE)).form == "compact"


def test_kept_ids_make_a_map_of_sorted_ids() -> None:
    space = space_with(top_k=dict.fromkeys(range(6), 1), keep=2)
    kept = {0: (5, 1), 1: (0, 7)} | {layer: (2, 3) for layer in range(2, 6)}
    routing_map = space.routing_map(kept, BY_HAND, {0: [1] * 8, 1: [2] * 8})
    assert [layer.experts.kept for layer in routing_map.layers][:2] == [(1, 5), (0, 7)]
    assert routing_map.form == "plain"
    assert routing_map.tokens_seen == {0: (1,) * 8, 1: (2,) * 8}


def test_top_k_of_each_layer_is_in_the_map() -> None:
    space = space_with(top_k={0: 1, 1: 2, 2: 3, 3: 1, 4: 1, 5: 1})
    routing_map = space.genome_map(Genome.identity([8]), space.groups(1), BY_HAND)
    assert [layer.top_k for layer in routing_map.layers] == [1, 2, 3, 1, 1, 1]


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(case=cases())
def test_any_genome_is_a_map_that_round_trips(case: Case, tmp_path: Path) -> None:
    routing_map = case.space.genome_map(case.genome, case.groups, BY_HAND)
    routing_map.save(tmp_path)
    loaded = RoutingMap.load(tmp_path)
    assert loaded == routing_map
    assert sum(layer.num_kept for layer in loaded.layers) == total_kept(
        case.genome.rows, case.groups
    )
    again = read_back(loaded, case.groups)
    assert again.key == case.genome.key
    back = case.space.genome_map(again, case.groups, BY_HAND)
    assert back.digest() == routing_map.digest()
