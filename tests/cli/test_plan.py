"""`vmprune score`, `plan` and `build` one after the other, and what `plan` refuses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from offline.calibration.scores import Scores
from offline.criteria.registry import CRITERIA
from tests.command import invoke, one_error, run
from tests.sample_files import write_text
from vllm_moe_prune.checkpoint import Checkpoint
from vllm_moe_prune.routing_map import RoutingMap


@pytest.fixture(scope="module")
def scores(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Scores of the tiny model on two domains, with gradients."""
    folder = tmp_path_factory.mktemp("scored")
    prose, other = write_text(folder / "prose.txt"), write_text(folder / "other.txt", 1)
    spec = f"prose={prose}:6,other={other}:4"
    flags = ["--length", "32", "--gradients", "--device", "cpu", "--dtype", "float32"]
    out = folder / "scores"
    result = invoke("score", "--model", model, "--calibration", spec, *flags, "--out", out)
    assert result.exit_code == 0, result.output
    return out


@pytest.mark.parametrize("name", CRITERIA)
def test_every_criterion_plans_from_one_pass(name: str, scores: Path, tmp_path: Path) -> None:
    out = tmp_path / "map"
    result = invoke("plan", "--scores", scores, "--criterion", name, "--keep", "4", "--out", out)
    assert result.exit_code == 0, result.output
    assert "8 of 16 experts in 2 layers" in result.output
    routing_map = RoutingMap.load(out)
    assert [layer.num_kept for layer in routing_map.layers] == [4, 4]


def test_a_plan_can_be_built(scores: Path, model: Path, tmp_path: Path) -> None:
    plan, out = tmp_path / "map", tmp_path / "built"
    flags = ["--criterion", "min-ean", "--ratio", "0.5", "--domains", "prose:2,other:1"]
    told = json.loads(invoke("plan", "--scores", scores, *flags, "--json", "--out", plan).stdout)
    routing_map = RoutingMap.load(plan)
    assert told["digest"] == routing_map.digest()
    assert told["criterion"] == "min-ean"
    assert {int(n): tuple(ids) for n, ids in told["kept"].items()} == {
        layer.layer: layer.experts.kept for layer in routing_map.layers
    }
    assert invoke("build", "--model", model, "--map", plan, "--out", out).exit_code == 0
    assert Checkpoint.open(out).expert_counts() == {0: 4, 1: 4}


def test_the_map_says_how_it_was_made(scores: Path, tmp_path: Path) -> None:
    out = tmp_path / "map"
    invoke("plan", "--scores", scores, "--criterion", "rwn", "--budget", "9", "--out", out)
    routing_map, read = RoutingMap.load(out), Scores.load(scores)
    made = routing_map.provenance
    assert made.method == "oneshot"
    assert (made.settings["criterion"], made.settings["budget"]) == ("max-rwn", 9)
    assert [data.name for data in made.data] == ["prose", "other", "scores"]
    assert routing_map.base == read.shape.base
    assert routing_map.tokens_seen is not None
    assert sum(routing_map.tokens_seen[0]) == 10 * 32 * 2
    assert sum(layer.num_kept for layer in routing_map.layers) == 9


def test_the_map_is_refused_for_another_base(scores: Path, base: Path, tmp_path: Path) -> None:
    plan = tmp_path / "map"
    invoke("plan", "--scores", scores, "--keep", "4", "--out", plan)
    result = invoke_failing("build", "--model", base, "--map", plan, "--out", tmp_path / "built")
    assert "routing map says nothing of layer 2" in result


def invoke_failing(*arguments: str | Path) -> str:
    with pytest.raises(ValueError) as caught:
        invoke(*arguments)
    return str(caught.value)


PLAN = [
    (["--keep", "4", "--criterion", "best"], "unknown criterion 'best'"),
    (["--keep", "9"], "--keep 9: layer 0 has 8 experts"),
    ([], "settings: give one of --keep, --ratio, --keep-per-layer and --budget"),
    (["--keep", "4", "--domains", "maths:1"], "no scores of domain 'maths'"),
    (["--keep", "4", "--protect", "9:1"], "--protect 9:1: layer 9 has no experts"),
    (
        ["--keep", "2", "--protect", "1:0-2"],
        "layer 1 keeps 2 experts, but 3 of them are protected: 0, 1, 2",
    ),
    (
        ["--keep-per-layer", "0:4,x"],
        "--keep-per-layer: 'x' is neither a number nor LAYER:K nor FIRST-LAST:K",
    ),
]


@pytest.mark.parametrize(("flags", "message"), PLAN, ids=[m for _, m in PLAN])
def test_what_plan_refuses_is_one_line(
    flags: list[str],
    message: str,
    scores: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "map"
    result = run("plan", "--scores", scores, *flags, "--out", out, capsys=capsys)
    assert one_error(*result) == message
    assert list(tmp_path.iterdir()) == []


def test_scores_that_are_not_there_and_maps_that_are_are_said(
    scores: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "map"
    flags = ["--keep", "4", "--out", out]
    assert str(tmp_path / "no") in one_error(
        *run("plan", "--scores", tmp_path / "no", *flags, capsys=capsys)
    )
    assert run("plan", "--scores", scores, *flags, capsys=capsys)[0] == 0
    before = RoutingMap.load(out)
    again = run("plan", "--scores", scores, *flags, capsys=capsys)
    assert one_error(*again) == f"{out} already exists"
    forced = run("plan", "--scores", scores, *flags, "--criterion", "rwn", "--force", capsys=capsys)
    assert forced[0] == 0
    assert RoutingMap.load(out).digest() != before.digest()


def test_experts_never_seen_are_named_on_stderr(scores: Path, tmp_path: Path) -> None:
    from dataclasses import replace

    import numpy as np

    read = Scores.load(scores)
    domains = {
        name: {
            n: replace(seen, counts=np.where(np.arange(8) == 3 + n, 0.0, seen.counts))
            for n, seen in layers.items()
        }
        for name, layers in read.domains.items()
    }
    changed = tmp_path / "scores"
    changed.mkdir()
    replace(read, domains=domains).save(changed)
    result = invoke("plan", "--scores", changed, "--keep", "4", "--json", "--out", tmp_path / "map")
    assert [line for line in result.stderr.splitlines() if line.startswith("warning")] == [
        "warning: layer 0: no token reached expert 3",
        "warning: layer 1: no token reached expert 4",
    ]
    told = json.loads(result.stdout)
    assert told["unseen"] == {"0": [3], "1": [4]}
    assert 3 not in told["kept"]["0"] and 4 not in told["kept"]["1"]


def test_what_serving_will_meet_is_said_and_friendly_avoids_it(
    scores: Path, tmp_path: Path
) -> None:
    flags = ["--keep", "3", "--serve-ep", "4", "--json"]
    result = invoke("plan", "--scores", scores, *flags, "--out", tmp_path / "map")
    told = json.loads(result.stdout)
    found = [one["code"] for one in told["lint"]]
    assert found == ["expert-parallel", "blackwell", "general-top-k", "untuned"]
    assert result.stderr.startswith("warning: 3 experts per layer cannot be shared equally by 4")
    inspected = json.loads(invoke("inspect", tmp_path / "map", "--json").stdout)
    assert [one["code"] for one in inspected["lint"]][-2:] == ["general-top-k", "untuned"]
    assert "note: layers 0-1: on a GPU 3 experts" in invoke("inspect", tmp_path / "map").stdout
    friendly = invoke("plan", "--scores", scores, *flags, "--friendly", "--out", tmp_path / "other")
    told = json.loads(friendly.stdout)
    assert told["rounded"] == ["--friendly: 4 experts instead of 3 in layers 0-1"]
    assert [one["code"] for one in told["lint"]] == ["untuned"]
    assert [layer.num_kept for layer in RoutingMap.load(tmp_path / "other").layers] == [4, 4]


def test_friendly_keeps_protected_experts_and_goes_down_with_a_budget(
    scores: Path, tmp_path: Path
) -> None:
    flags = ["--budget", "13", "--protect", "0:0-4", "--friendly", "--out", tmp_path / "map"]
    assert invoke("plan", "--scores", scores, *flags).exit_code == 0
    first, second = RoutingMap.load(tmp_path / "map").layers
    assert (first.num_kept, second.num_kept) == (8, 4)
