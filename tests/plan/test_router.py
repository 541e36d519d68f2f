"""Plans whose routers are of a kind that is asked for."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from tests.plan.test_plan import SCORES, kept, planned
from vllm_moe_prune.errors import PruneError


def test_routers_of_a_model_that_does_not_renormalise() -> None:
    scores = replace(SCORES, shape=replace(SCORES.shape, slices=False))
    plain, exact = planned(scores, keep=3, router="sliced"), planned(scores, keep=3)
    assert (plain.routing_map.form, exact.routing_map.form) == ("plain", "compact")
    assert kept(plain) == kept(exact)
    assert [one.code for one in plain.findings if "router" in one.code] == ["inexact-router"]
    assert plain.routing_map.provenance.settings["router"] == "sliced"
    for same in (planned(scores, keep=3, router="auto"), planned(scores, keep=3, router="mapped")):
        assert same.routing_map.digest() == exact.routing_map.digest()
    assert "router" not in planned(keep=3, router="auto").routing_map.provenance.settings
    assert planned(keep=3, router="mapped").routing_map.form == "compact"


def test_merged_scores_cannot_be_sliced() -> None:
    merged: dict[str, Any] = {"keep": 3, "merge": "output-similarity", "router": "sliced"}
    with pytest.raises(PruneError, match="adds up the scores of merged experts is mapped"):
        planned(**merged)
    scores = replace(SCORES, shape=replace(SCORES.shape, slices=False))
    assert planned(scores, **merged, merge_router="dominant").routing_map.form == "plain"
