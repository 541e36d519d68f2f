"""Routing functions that are switched: a map's entry is what a router with its rows would do."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from vllm_moe_prune.choice import Choice
from vllm_moe_prune.errors import PruneError
from vllm_moe_prune.layer_map import LayerMap, Selection
from vllm_moe_prune.layouts import LAYOUTS
from vllm_moe_prune.live_routing import LiveRouting, one_hot_ids
from vllm_moe_prune.routing import renormalised, route

E, T = 8, 40
LOGITS = torch.randn(T, E, generator=torch.Generator().manual_seed(0))
BIAS = torch.randn(E, generator=torch.Generator().manual_seed(1))
KEPT = (0, 2, 5, 6)  # two of each of two groups


def best_two(_: torch.Tensor, logits: torch.Tensor) -> Any:
    weights, ids = logits.topk(2)
    return weights.sigmoid(), ids


CHOICES = {
    "deepseek_v3": Choice("sigmoid", renormalises=True, bias=BIAS, groups=2, active=1),
    "glm4_moe": Choice("sigmoid", renormalises=True, bias=BIAS),
    "ernie4_5_moe": Choice("softmax", renormalises=True, bias=BIAS / 8),
    "deepseek_v2": Choice("softmax", renormalises=False, groups=2, active=1),
    "phimoe": Choice("softmax", renormalises=False, own=best_two),
    "mixtral": Choice("softmax", renormalises=True),
    "olmoe": Choice("softmax", renormalises=False),
}


def routing_of(family: str, *, recorded: bool = False) -> LiveRouting:
    return LiveRouting(E, 2, LAYOUTS[family], CHOICES[family], fixed_columns=recorded)


def entry(kept: Sequence[int] = KEPT, **more: Any) -> LayerMap:
    fields = {"layer": 3, "num_experts": E, "num_kept": len(kept), "top_k": 2}
    return LayerMap(**{**fields, "experts": Selection(kept=tuple(kept)), **more})


def chosen(routing: LiveRouting, logits: torch.Tensor = LOGITS) -> dict[str, torch.Tensor]:
    weights, ids = routing(torch.zeros(len(logits), 1), logits, 2, True)
    assert ids.dtype == torch.int32 and weights.dtype == torch.float32
    found = torch.zeros(len(logits), E).scatter_add(1, ids.long(), weights)
    return {"weights": weights, "ids": ids, "spread": found}


def smaller(family: str, kept: Sequence[int]) -> LiveRouting:
    """Return the router of a model that has the kept gate rows only."""
    choice = CHOICES[family]
    bias = None if choice.bias is None else choice.bias[list(kept)]
    layout = LAYOUTS[family]
    return LiveRouting(len(kept), 2, layout, replace(choice, bias=bias), fixed_columns=False)


@pytest.mark.parametrize("recorded", [False, True])
@pytest.mark.parametrize("family", CHOICES)
def test_masks_are_the_router_without_the_dropped_rows(family: str, recorded: bool) -> None:
    routing = routing_of(family, recorded=recorded)
    base = chosen(routing)["spread"]
    routing.set(entry())
    found = chosen(routing)
    expected = chosen(smaller(family, KEPT), LOGITS[:, KEPT])["spread"][:, :4]
    torch.testing.assert_close(found["spread"][:, KEPT], expected)
    assert not found["spread"][:, [1, 3, 4, 7]].any()
    routing.set(None)
    assert torch.equal(chosen(routing)["spread"], base)
    assert (base - found["spread"]).abs().max() > 0.1


@pytest.mark.parametrize("recorded", [False, True])
@pytest.mark.parametrize("family", CHOICES)
def test_merged_experts_lie_in_the_first_slots(family: str, recorded: bool) -> None:
    routing = routing_of(family, recorded=recorded)
    routing.set(entry())
    masked = chosen(routing)["spread"]
    merged = {"experts": Selection(matrix="w"), "router_rows": Selection(kept=KEPT)}
    routing.set(entry(**merged))
    assert torch.equal(chosen(routing)["spread"][:, :4], masked[:, KEPT])


@pytest.mark.parametrize("family", CHOICES)
def test_recorded_keeps_its_columns_and_gives_weight_to_fewer(family: str) -> None:
    eager, recorded = routing_of(family), routing_of(family, recorded=True)
    for routing in (eager, recorded):
        routing.set(entry((4,), top_k=1) if family == "mixtral" else entry(top_k=1))
    found, expected = chosen(recorded), chosen(eager)
    torch.testing.assert_close(found["spread"], expected["spread"])
    assert found["ids"].shape == (T, 2) and expected["ids"].shape == (T, 1)


@pytest.mark.parametrize("family", ["mixtral", "olmoe"])
def test_mapped_scores_are_those_of_route(family: str) -> None:
    w_rm = np.abs(np.random.default_rng(0).normal(size=(4, E))).astype(np.float32)
    mapped = entry(router="mapped", router_rows=Selection(matrix="r"))
    weights, ids = route(LOGITS, torch.from_numpy(w_rm), 2, score="softmax", renormalise=False)
    if CHOICES[family].renormalises:
        weights = renormalised(weights)
    for recorded in (False, True):
        routing = routing_of(family, recorded=recorded)
        routing.set(mapped, w_rm)
        found = chosen(routing)
        torch.testing.assert_close(found["weights"], weights)
        assert torch.equal(found["ids"].long(), torch.tensor(KEPT)[ids])


@pytest.mark.parametrize("recorded", [False, True])
def test_one_hot_w_rm_takes_scores_of_a_softmax_over_all(recorded: bool) -> None:
    routing = routing_of("olmoe", recorded=recorded)
    w_rm = np.eye(E, dtype=np.float32)[list(KEPT)]
    routing.set(entry(router="mapped"), w_rm)
    weights, ids = route(LOGITS, torch.from_numpy(w_rm), 2, score="softmax", renormalise=False)
    found = chosen(routing)
    assert torch.equal(found["ids"].long(), torch.tensor(KEPT)[ids])
    assert torch.equal(found["weights"], weights)


def test_one_hot_w_rm_is_a_mask_where_it_is_the_same_as_a_slice() -> None:
    w_rm = np.eye(E, dtype=np.float32)[list(KEPT)]
    routing = routing_of("glm4_moe")
    routing.set(entry())
    sliced = chosen(routing)["spread"]
    routing.set(entry(router="mapped"), w_rm)
    assert torch.equal(chosen(routing)["spread"], sliced)
    for family in ("glm4_moe", "ernie4_5_moe", "phimoe"):
        routing = routing_of(family)
        before = chosen(routing)["spread"]
        matrix = w_rm if family != "glm4_moe" else w_rm * 0.5
        with pytest.raises(PruneError, match=f"layer 3: the router of a {family} model cannot"):
            routing.set(entry(router="mapped"), matrix)
        assert torch.equal(chosen(routing)["spread"], before)


def test_what_does_so_already_is_not_touched() -> None:
    routing = routing_of("mixtral")
    w_rm = np.random.default_rng(0).normal(size=(4, E)).astype(np.float32)

    def written() -> int:
        tensors = (routing.logit_mask, routing.score_mask, routing.w_rm, routing.slots)
        return sum(t._version for t in tensors)

    before = written()
    routing.set(None)
    assert written() == before
    mapped = entry(router="mapped", router_rows=Selection(matrix="r"))
    for given in ((entry(), None), (mapped, w_rm), (mapped, w_rm * 2), (entry(top_k=1), None)):
        routing.set(*given)
        after = written()
        assert after > before
        routing.set(*given)
        assert (before := written()) == after


def test_usage_counts_columns_that_have_a_weight() -> None:
    routing = routing_of("mixtral", recorded=True)
    routing.set(entry(top_k=1))
    routing.watching = True
    chosen(routing)
    assert routing.seen is not None
    assert [t.shape for t in routing.seen] == [(T, E), (T, 1)]


def test_one_hot_ids() -> None:
    eye = np.eye(3, dtype=np.float32)
    assert one_hot_ids(eye[[2, 0]]) == (2, 0)
    assert [one_hot_ids(m) for m in (None, eye * 2, eye + 1, eye[[1, 1]], eye * 0)] == [None] * 5
