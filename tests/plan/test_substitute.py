"""`vmprune plan --substitute`: the router chooses as before, and mean outputs stand in."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from offline.calibration.calibrate import calibrate
from offline.calibration.corpus import Domain
from offline.engines.local.transformers import TransformersEngine
from offline.plan.plan import Plan, plan
from offline.plan.recipe import PlanRecipe
from tests.command import invoke
from tests.criteria.scores import scores_of
from tests.tiny import make_tiny_mixtral
from vllm_moe_prune.errors import PruneError
from vllm_moe_prune.provenance import DataIdentity
from vllm_moe_prune.routing_map import RoutingMap

SCORES = scores_of((1, 2, 5))


def planned(scores: Any = SCORES, **flags: Any) -> Plan:
    return plan(scores, PlanRecipe.of({"substitute": True, **flags}))


def test_what_would_be_dropped_is_substituted_by_its_mean_output() -> None:
    found = planned(keep=3, domains="prose:1").routing_map
    dropped = plan(SCORES, PlanRecipe(keep=3, domains="prose:1")).routing_map
    for layer, other in zip(found.layers, dropped.layers, strict=True):
        assert layer.experts == other.experts
        assert sorted((*(layer.experts.kept or ()), *layer.constant_ids)) == list(range(6))
        assert layer.router == "sliced" and layer.gate_rows == layer.num_experts == 6
        mean = SCORES.domains["prose"][layer.layer].mean[list(layer.constant_ids)]
        assert np.array_equal(found.vectors(layer), mean.astype(np.float32))
    assert found.provenance.method == "substitute"
    assert found.provenance.settings["substitute"] is True
    assert (found.form, dropped.form) == ("compact", "plain")
    assert found.tokens_seen == dropped.tokens_seen


def test_neither_top_k_nor_router_groups_bound_what_is_kept() -> None:
    shape = replace(SCORES.shape, num_groups=2, topk_group=1, model_type="deepseek_v3")
    scores = replace(SCORES, shape=shape)
    found = planned(scores, keep=1, top_k="3").routing_map
    assert [(layer.num_kept, layer.top_k) for layer in found.layers] == [(1, 3)] * 3
    assert found.num_groups == 2
    with pytest.raises(PruneError, match="groups cannot share 1 experts"):
        plan(scores, PlanRecipe(keep=1, top_k="1"))
    assert sum(layer.num_kept for layer in planned(scores, budget=5).routing_map.layers) == 5


def test_a_layer_that_keeps_all_has_no_vectors() -> None:
    found = planned(keep_per_layer="5:3").routing_map
    assert [len(layer.constant_ids) for layer in found.layers] == [0, 0, 3]
    assert list(found.matrices) == ["layers.5.substituted"]
    assert not planned(keep=6).routing_map.substitutes


@pytest.mark.parametrize("more", [{"merge": "output-similarity"}, {"router": "mapped"}])
def test_it_is_no_other_fate(more: dict[str, Any]) -> None:
    with pytest.raises(PruneError, match=f"leave out --{next(iter(more))}"):
        planned(keep=3, **more)


def test_a_family_without_one_output_is_refused() -> None:
    shape = replace(SCORES.shape, model_type="llama4_text")
    with pytest.raises(PruneError, match="llama4_text model cannot be substituted"):
        planned(replace(SCORES, shape=shape), keep=3)


def test_lint_knows_what_such_a_map_is_served_with() -> None:
    found = {one.code: one for one in planned(keep=2, serve_ep=2).findings}
    assert found["substituted"].level == "note"
    assert "shared equally" in found["expert-parallel"].message
    assert not {"all-active", "general-top-k", "inexact-router", "blackwell"} & found.keys()


def test_of_all_vectors_the_mean_errs_least(tmp_path: Path) -> None:
    """What stands in is what the expert gives: of a text, nearer than nothing is."""
    base = make_tiny_mixtral(tmp_path / "base", layers=1)
    engine = TransformersEngine(base, dtype="float32")
    ids = np.random.default_rng(0).integers(3, 120, (4, 32))
    text = Domain("text", ids, DataIdentity(name="text", count=4, sha256=""))
    scores = calibrate(engine, [text])
    whole = engine.logits(ids)
    apart = {}
    for name, flags in {"dropped": {}, "substituted": {"substitute": True}}.items():
        engine.apply(plan(scores, PlanRecipe.of({"keep": 7, **flags})).routing_map)
        apart[name] = float((engine.logits(ids) - whole).square().mean())
    assert 0 < apart["substituted"] < apart["dropped"]


def test_the_command_writes_a_map_that_can_be_looked_at(tmp_path: Path) -> None:
    (tmp_path / "scores").mkdir()
    SCORES.save(tmp_path / "scores")
    words = ["--scores", tmp_path / "scores", "--keep", "4", "--substitute"]
    said = invoke("plan", *words, "--out", tmp_path / "plan").stdout
    assert "6 substituted experts" in said
    assert RoutingMap.load(tmp_path / "plan").schema_version == 3
    assert "constant:" in invoke("inspect", tmp_path / "plan").stdout
