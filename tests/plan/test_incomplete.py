"""Experts that lack a tensor go first, whatever a criterion says, and it is said and recorded."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from offline.build.build import build, plan_build
from offline.calibration.scores import Scores
from offline.compress.prepared import check_model
from offline.compress.recipe.reading import recipe_of
from offline.criteria.order import order_of
from offline.maps.moe_shape import MoeShape
from offline.plan.plan import Plan, plan
from offline.plan.recipe import PlanRecipe
from tests.command import invoke, one_error, run
from tests.criteria.scores import scores_of
from tests.families.bare import write_bare
from tests.families.quantised import FORMATS
from tests.families.released.reader import Released, write
from tests.sample_maps import uniform_map
from vllm_moe_prune.checkpoint import Checkpoint
from vllm_moe_prune.errors import PruneError
from vllm_moe_prune.routing_map import RoutingMap

pytestmark = pytest.mark.usefixtures("parts_are_enough")

LOST = (1, 4)  # of eight experts, those that no token of the quantiser's calibration reached
SETTINGS = {"quant_method": "modelopt", "quant_algo": "NVFP4", "ignore": ["lm_head"]}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An NVFP4 checkpoint as ModelOpt writes it, two of whose experts have no `input_scale`."""
    folder = tmp_path_factory.mktemp("nvfp4") / "b"
    write_bare("mixtral", folder, parts_of=FORMATS["modelopt-nvfp4"], settings=SETTINGS)
    file = folder / "model.safetensors"
    lost = [f".experts.{expert}.{one}.input_scale" for expert in LOST for one in ("w1", "w2", "w3")]
    tensors = {n: t for n, t in load_file(file).items() if not n.endswith(tuple(lost))}
    save_file(tensors, file)
    return folder


def scores_for(base: Path) -> Scores:
    made = scores_of((0,), experts=8, tokens=300)
    return replace(made, shape=MoeShape.of(Checkpoint.open(base)))


def kept(found: Plan) -> tuple[int, ...]:
    return found.routing_map.layers[0].experts.kept or ()


@pytest.mark.parametrize("criterion", ["min-ean", "max-ean", "euf", "ecc"])
def test_they_go_first_and_the_map_is_built(criterion: str, base: Path, tmp_path: Path) -> None:
    scores = scores_for(base)
    assert scores.shape.incomplete == {0: LOST}
    found = plan(scores, PlanRecipe(keep=6, criterion=criterion))
    assert kept(found) == (0, 2, 3, 5, 6, 7) and found.incomplete_kept == {}
    assert found.routing_map.provenance.settings["incomplete"] == {"0": [*LOST]}
    checkpoint = Checkpoint.open(base)
    build(checkpoint, found.routing_map, tmp_path / "out")
    out = Checkpoint.open(tmp_path / "out")
    name = "model.layers.0.block_sparse_moe.experts.{}.w2.{}"
    for new, old in enumerate(kept(found)):
        for part in ("weight", "weight_scale", "weight_scale_2", "input_scale"):
            assert out.raw(name.format(new, part)) == checkpoint.raw(name.format(old, part))
    assert out.missing_tensors() == {}


def test_who_keeps_more_than_there_are_whole_is_told_and_the_build_refuses(base: Path) -> None:
    found = plan(scores_for(base), PlanRecipe(keep=7))
    (one,) = found.incomplete_kept[0]
    assert one in LOST
    with pytest.raises(PruneError, match=rf"experts\.{one}\.w1\.input_scale .*vmprune plan"):
        plan_build(Checkpoint.open(base), found.routing_map)


def test_they_cannot_be_protected(base: Path) -> None:
    with pytest.raises(PruneError, match="--protect: 0:4 lack tensors that others"):
        plan(scores_for(base), PlanRecipe(keep=6, protect="0:3-4"))
    scores = scores_for(base)
    peaks = np.ones(8)
    peaks[4] = 1000.0
    seen = replace(scores.domains["prose"][0], peaks=peaks)
    found = plan(
        replace(scores, domains={"prose": {0: seen}}), PlanRecipe(keep=6, protect_outliers=True)
    )
    assert found.outliers == {} and 4 not in kept(found)


def test_a_budget_counts_them_for_nothing() -> None:
    scores = scores_of((0, 1), tokens=100)
    shape = replace(scores.shape, incomplete={1: (0, 1, 2, 3)}, top_k={0: 1, 1: 1})
    found = plan(replace(scores, shape=shape), PlanRecipe(budget=8))
    assert [one.num_kept for one in found.routing_map.layers] == [6, 2]
    assert found.routing_map.layers[1].experts.kept == (4, 5)


@hypothesis_settings(max_examples=40, deadline=None)
@given(st.lists(st.floats(0, 9), min_size=1, max_size=8), st.sets(st.integers(0, 7)))
def test_an_order_that_begins_with_some_is_still_one(values: list[float], first: set[int]) -> None:
    before = order_of(np.array(values), "min", np.zeros(len(values), dtype=bool))
    first = {expert for expert in first if expert < len(values)}
    after = before.beginning_with(first)
    assert set(after.experts[: len(first)]) == first
    assert after.importance.sum() == pytest.approx(1.0)
    assert np.all(np.diff(after.importance[list(after.experts)]) >= -1e-12)
    rest = [expert for expert in before.experts if expert not in first]
    assert list(after.experts[len(first) :]) == rest


def test_scores_remember_them_and_older_ones_have_none(base: Path, tmp_path: Path) -> None:
    scores_for(base).save(tmp_path / "s")
    assert Scores.load(tmp_path / "s").shape.incomplete == {0: LOST}
    scores_of((0,), experts=8).save(tmp_path / "t")
    assert "incomplete" not in json.loads((tmp_path / "t" / "scores.json").read_text())
    assert Scores.load(tmp_path / "t").shape.incomplete == {}


def test_on_the_command_line(
    base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Scores of the original, whose experts are whole, for its quantised copy."""
    scores_of((0,), experts=8, tokens=300).save(tmp_path / "scores")
    words = ["plan", "--scores", tmp_path / "scores", "--out", tmp_path / "map", "--force"]
    plain = invoke(*words, "--keep", "6")
    assert "lack tensors" not in plain.output
    copy = invoke(*words, "--keep", "7", "--model", base)
    assert "note: layer 0: expert 1, 4 lack tensors that others have" in copy.stderr
    assert "warning: layer 0 keeps expert" in copy.stderr
    facts = json.loads(invoke(*words, "--keep", "6", "--model", base, "--json").stdout)
    assert facts["incomplete"] == {"0": [*LOST]} and facts["kept"] == {"0": [0, 2, 3, 5, 6, 7]}
    build_words = ["build", "--model", base, "--map", tmp_path / "map", "--out", tmp_path / "out"]
    made = invoke(*build_words, "--allow-other-base", "--dry-run", "--json")
    assert json.loads(made.stdout)["lint"] == []
    scores_of((0, 1), experts=8).save(tmp_path / "other")
    wrong = ["plan", "--scores", tmp_path / "other", "--out", tmp_path / "map", "--keep", "6"]
    error = one_error(*run(*wrong, "--model", base, "--force", capsys=capsys))
    assert "has other layers or numbers of experts" in error


def test_inspect_names_them(base: Path) -> None:
    text = invoke("inspect", base).output
    assert (
        "warning: layer 0: experts 1, 4 are without tensors that others of the layer have" in text
    )
    facts: dict[str, Any] = json.loads(invoke("inspect", base, "--json").stdout)
    assert facts["incomplete"]["0"].keys() == {"1", "4"}
    assert facts["incomplete"]["0"]["1"][0].endswith("experts.1.w1.input_scale")
    assert [one["code"] for one in facts["lint"]] == ["incomplete-experts"]


def test_a_search_does_not_begin_with_them(base: Path) -> None:
    """What it would find could not be built, hours later."""
    recipe = recipe_of({"model": base, "keep": 4, "method": "frequency", "task": "sciq"})
    with pytest.raises(
        PruneError, match=r"lack tensors .* \(layer 0: 1, 4\) .*vmprune score, then"
    ):
        check_model(recipe)


def test_a_draft_layer_keeps_others_of_its_own(tmp_path: Path) -> None:
    model = Released.read("zai-org--GLM-4.6-FP8", small=True)
    tensors = [*model.tensors(model.experts), *model.tensors(model.experts, part="drafts")]

    def built(name: str, without: str) -> list[int]:
        left = [one for one in tensors if not (without and without in one.name)]
        config = model.config(model.experts, model.top_k)
        write(tmp_path / name, config, left, contents=True)
        whole = Checkpoint.open(tmp_path / name)
        kept = [range(0, model.experts, 2)] * len(whole.expert_counts())
        build(whole, uniform_map(whole.folder, kept), tmp_path / f"{name}-out", mtp="prune")
        told = RoutingMap.load(tmp_path / f"{name}-out").provenance.settings["mtp_kept"]
        assert isinstance(told, dict)
        return [int(str(one)) for ids in told.values() for one in ids]  # type: ignore[union-attr]

    first = built("whole", "")[0]
    (layer,) = model.numbers("draft")
    others = built("lacking", f".{layer}.mlp.experts.{first}.up_proj.weight_scale")
    assert first not in others and len(others) == model.experts // 2
