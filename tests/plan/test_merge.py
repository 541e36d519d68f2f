"""`vmprune plan --merge`: maps that merge, and files that are smaller for it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from offline.build.build import build
from offline.calibration.scores import tokens_seen
from offline.cli.plan import plan as plan_command
from offline.engines.local.transformers import TransformersEngine
from offline.methods.merging import CLUSTERINGS, merged_map
from offline.plan.plan import plan, space_of
from offline.plan.recipe import PlanRecipe
from tests.analysis.samples import routed, scores_of, two_domains
from tests.tiny import make_tiny_mixtral
from vllm_moe_prune.checkpoint import Checkpoint
from vllm_moe_prune.errors import PruneError
from vllm_moe_prune.routing_map import RoutingMap

SCORES = scores_of(two_domains())


def planned(**flags: Any) -> RoutingMap:
    return plan(SCORES, PlanRecipe.of(flags)).routing_map


@pytest.mark.parametrize("kind", sorted(CLUSTERINGS))
@pytest.mark.parametrize("router", ["sum", "dominant"])
def test_the_plan_is_the_merging_of_the_blend(kind: Any, router: Any) -> None:
    found = planned(merge=kind, merge_router=router, keep=3, domains="code:1,prose:3")
    recipe = PlanRecipe(keep=3, domains="code:1,prose:3")
    evidence = SCORES.evidence(recipe.blend)
    space = space_of(SCORES.shape, recipe)
    keep = dict.fromkeys(space.layers, 3)
    assert (
        found.digest() == merged_map(space, evidence, keep, kind, router, found.provenance).digest()
    )
    assert found.form == ("compact" if router == "sum" else "plain")
    assert found.tokens_seen == tokens_seen(SCORES)
    assert found.provenance.method == "merge"
    assert found.provenance.settings["merge"] == kind


def test_a_budget_is_spread_as_the_criterion_says() -> None:
    dropped = planned(budget=11, criterion="min-euf")
    merged = planned(budget=11, criterion="min-euf", merge="output-similarity")
    counts = [layer.num_kept for layer in merged.layers]
    assert counts == [layer.num_kept for layer in dropped.layers]
    assert sum(counts) == 11
    assert len(set(counts)) > 1


def test_merged_experts_cannot_be_protected() -> None:
    for protection in ({"protect": "0:1"}, {"protect_outliers": True}):
        with pytest.raises(PruneError, match="--merge leaves no expert as it is"):
            PlanRecipe.of({"keep": 3, "merge": "output-similarity", **protection})


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("merge")
    make_tiny_mixtral(folder / "base")
    tokens = {"prose": {n: routed(n, experts=8) for n in (0, 1)}}
    scores = scores_of(tokens, base=Checkpoint.open(folder / "base").fingerprint())
    (folder / "scores").mkdir()
    scores.save(folder / "scores")
    return folder


@pytest.mark.parametrize("router", ["sum", "dominant"])
def test_what_is_built_is_smaller_and_computes_what_the_map_says(
    base: Path, tmp_path: Path, router: str
) -> None:
    words = ["--scores", str(base / "scores"), "--keep", "4", "--merge", "output-similarity"]
    words += ["--merge-router", router, "--out", str(tmp_path / "plan")]
    done = CliRunner().invoke(plan_command, words)
    assert done.exit_code == 0, done.exception
    assert done.output.count("merged") >= 2
    routing_map = RoutingMap.load(tmp_path / "plan")
    built = tmp_path / "built"
    build(Checkpoint.open(base / "base"), routing_map, built)
    before, after = Checkpoint.open(base / "base"), Checkpoint.open(built)
    assert after.expert_bytes() * 2 == before.expert_bytes()
    if router == "sum":
        assert routing_map.form == "compact"  # only vLLM opens it: see the parity tests
        return
    whole, small = (TransformersEngine(f, dtype="float32") for f in (base / "base", built))
    ids = [np.arange(5, 37).tolist()]
    unmerged = whole.logits(ids)
    whole.apply(routing_map)
    expected = whole.logits(ids)
    torch.testing.assert_close(small.logits(ids), expected, atol=2e-4, rtol=1e-4)
    assert not torch.allclose(expected, unmerged, atol=1e-2)
