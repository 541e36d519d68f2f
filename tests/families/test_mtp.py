"""MTP (draft) layers: kept, pruned or dropped as the user says, and never without being asked."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from offline.build.build import build, plan_build
from offline.build.mtp import MtpChoice
from offline.build.trained import finish
from offline.cli.main import cli
from offline.compress.prepared import Prepared
from offline.compress.recipe.reading import recipe_of
from tests.families.models import EXPERTS, make_family
from tests.families.mtp import MTP, WITH_EXPERTS, add_mtp
from tests.families.test_build import IDS, KEPT, loaded, sliced_map
from tests.sample_maps import uniform_map
from vllm_moe_prune.checkpoint import Checkpoint
from vllm_moe_prune.draft_config import own_counts
from vllm_moe_prune.errors import PruneError
from vllm_moe_prune.rewrite import Copy, rewrite
from vllm_moe_prune.routing_map import RoutingMap


class Case:
    """A tiny model of a family with a draft layer, and the same without it."""

    def __init__(self, family: str, folder: Path) -> None:
        self.family = family
        self.bare = Checkpoint.open(make_family(family, folder / "bare"))
        make_family(family, folder / "base")
        self.names = add_mtp(family, folder / "base")
        self.base = Checkpoint.open(folder / "base")
        self.map = sliced_map(self.base)
        self.prefix = MTP[family][0]

    def built(self, out: Path, choice: MtpChoice) -> tuple[Checkpoint, RoutingMap]:
        build(self.base, self.map, out, mtp=choice)
        return Checkpoint.open(out), RoutingMap.load(out)


@pytest.fixture(scope="module", params=MTP)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    return Case(request.param, tmp_path_factory.mktemp(request.param))


@pytest.fixture(scope="module", params=WITH_EXPERTS)
def expert_case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    return Case(request.param, tmp_path_factory.mktemp(request.param))


def test_a_map_says_nothing_of_draft_layers(case: Case) -> None:
    assert len(case.names) > 5
    assert {name for name in case.base.tensors if case.base.layout.is_mtp(name)} == set(case.names)
    assert case.base.expert_counts() == case.bare.expert_counts()
    operations = rewrite(case.base.tensors, case.map, case.base.layout)
    made = {op.source: op for op in operations if isinstance(op, Copy)}
    for name in case.names:  # what the plugin streams: vLLM's model leaves them out by itself
        assert made[name] == Copy(name, case.base.tensors[name])


def test_without_a_choice_nothing_is_written(case: Case, tmp_path: Path) -> None:
    with pytest.raises(PruneError, match=r"has MTP \(draft\) layers") as caught:
        build(case.base, case.map, tmp_path / "out")
    assert caught.value.hint is not None
    assert all(f"--mtp {choice}" in caught.value.hint for choice in ("drop", "prune", "keep"))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("choice", ["drop", "prune"])
def test_the_model_itself_is_the_same_as_without_draft_layers(
    case: Case, choice: MtpChoice, tmp_path: Path
) -> None:
    out, _ = case.built(tmp_path / "out", choice)
    build(case.bare, sliced_map(case.bare), tmp_path / "bare")
    bare = Checkpoint.open(tmp_path / "bare")
    rest = {name for name in out.tensors if not case.base.layout.is_mtp(name)}
    assert rest == bare.tensors.keys()
    assert all(out.raw(name) == bare.raw(name) for name in rest)
    with torch.no_grad():
        found, expected = (loaded(tmp_path / one)(IDS).logits for one in ("out", "bare"))
    assert torch.equal(found, expected)


def test_drop_leaves_no_tensor_and_says_so_in_the_config(case: Case, tmp_path: Path) -> None:
    out, routing_map = case.built(tmp_path / "out", "drop")
    assert not out.tensors.keys() & set(case.names)
    assert case.base.config["num_nextn_predict_layers"] == 1
    assert out.config["num_nextn_predict_layers"] == 0
    assert routing_map.provenance.settings["mtp"] == "drop"
    assert '"mtp": "drop"' in (tmp_path / "out" / "README.md").read_text()
    again = uniform_map(out.folder, [(0, 2)] * len(out.expert_counts()))
    assert plan_build(out, again).routing_map == again  # nothing is left to choose


def test_what_a_lottery_ends_with_says_that_there_are_none(tmp_path: Path) -> None:
    """Its rounds drop them, and its last step takes the config of the base again."""
    glm = Case("glm4_moe", tmp_path)
    last, routing_map = glm.built(tmp_path / "last", "drop")
    finish(last, glm.base, routing_map, tmp_path / "out")
    assert Checkpoint.open(tmp_path / "out").config["num_nextn_predict_layers"] == 0


def largest_rows(gate: torch.Tensor, keep: int, groups: int) -> list[int]:
    norms = [float(row.square().sum().sqrt()) for row in gate]
    size = len(norms) // groups
    kept: list[int] = []
    for group in range(groups):
        members = range(group * size, (group + 1) * size)
        kept += sorted(members, key=lambda i: -norms[i])[: keep // groups]
    return sorted(kept)


def test_prune_keeps_the_experts_with_the_largest_gate_rows(
    expert_case: Case, tmp_path: Path
) -> None:
    base, prefix = expert_case.base, expert_case.prefix
    out, routing_map = expert_case.built(tmp_path / "out", "prune")
    gate = base.tensor(f"{prefix}mlp.gate.weight")
    kept = largest_rows(gate, 4, base.layout.num_groups(base.config))
    assert kept not in (list(KEPT[2]), [0, 1, 2, 3])
    settings = routing_map.provenance.settings
    number = prefix.split(".")[-2]
    assert settings["mtp"] == "prune"
    assert (settings["mtp_kept"], settings["mtp_criterion"]) == ({number: kept}, "min-rwn")
    assert torch.equal(out.tensor(f"{prefix}mlp.gate.weight"), gate[kept])
    left = {name for name in out.tensors if name.startswith(prefix) and ".mlp.experts." in name}
    for new, old in enumerate(kept):
        for projection in ("gate_proj", "up_proj", "down_proj"):
            name = f"{prefix}mlp.experts.{new}.{projection}.weight"
            assert out.raw(name) == base.raw(f"{prefix}mlp.experts.{old}.{projection}.weight")
            left.remove(name)
    assert not left
    for name in expert_case.names:
        if ".mlp.experts." not in name and ".gate." not in name:
            assert out.raw(name) == base.raw(name)
    bias = f"{prefix}mlp.gate.e_score_correction_bias"
    assert (bias in base.tensors) == (expert_case.family != "qwen3_next")
    if bias in base.tensors:
        assert torch.equal(out.tensor(bias), base.tensor(bias)[kept])
    assert out.config["num_nextn_predict_layers"] == 1


def test_keep_copies_all_experts_beside_layers_that_keep_fewer(
    expert_case: Case, tmp_path: Path
) -> None:
    out, _ = expert_case.built(tmp_path / "out", "keep")
    assert all(out.raw(name) == expert_case.base.raw(name) for name in expert_case.names)
    assert own_counts(out.config, out.layout) == (EXPERTS, 2)
    assert out.layout.num_experts(out.config) == 4


def test_keep_copies_where_a_layer_keeps_all_experts(expert_case: Case, tmp_path: Path) -> None:
    first, *others = expert_case.map.layers
    everything = {"num_kept": EXPERTS, "experts": {"kept": tuple(range(EXPERTS))}}
    layers = [first.model_dump(exclude_none=True) | everything, *others]
    fields = expert_case.map.model_dump() | {"layers": layers}
    out = tmp_path / "out"
    build(expert_case.base, RoutingMap.model_validate(fields), out, mtp="keep")
    written = Checkpoint.open(out)
    for name in expert_case.names:
        assert written.raw(name) == expert_case.base.raw(name)
    assert written.config["num_nextn_predict_layers"] == 1
    assert written.layout.num_experts(written.config) == EXPERTS
    assert own_counts(written.config, written.layout) is None


@pytest.mark.parametrize("choice", ["keep", "prune"])
def test_a_draft_layer_without_experts_stays_as_it_is(choice: MtpChoice, tmp_path: Path) -> None:
    ernie = Case("ernie4_5_moe", tmp_path)
    out, routing_map = ernie.built(tmp_path / "out", choice)
    assert all(out.raw(name) == ernie.base.raw(name) for name in ernie.names)
    assert routing_map.provenance.settings["mtp"] == choice


def test_on_the_command_line(tmp_path: Path) -> None:
    glm = Case("glm4_moe", tmp_path)
    glm.map.save(tmp_path / "map")
    paths = {"--model": glm.base.folder, "--map": tmp_path / "map", "--out": tmp_path / "out"}
    words = ["build", *(str(word) for pair in paths.items() for word in pair)]
    refused = CliRunner().invoke(cli, words)
    assert isinstance(refused.exception, PruneError)
    assert CliRunner().invoke(cli, [*words, "--mtp", "drop"]).exit_code == 0
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["num_nextn_predict_layers"] == 0


def test_a_search_asks_before_it_begins(tmp_path: Path) -> None:
    glm = Case("glm4_moe", tmp_path)
    with pytest.raises(PruneError, match=r"has MTP \(draft\) layers"):
        Prepared.of(recipe_of({"model": glm.base.folder, "keep": 4}))
    with pytest.raises(ValueError, match="a lottery trains, and MTP layers not"):
        recipe_of({"model": glm.base.folder, "keep": 4, "method": "lottery", "mtp": "prune"})
