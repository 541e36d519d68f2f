"""A group-limited router through `vmprune score`, `plan` and `build`, to a model that loads."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.command import invoke, one_error, run
from tests.families.models import make_family
from tests.sample_files import write_text
from tests.tiny import make_tiny_mixtral
from vllm_moe_prune.routing_map import RoutingMap

GROUPED: dict[str, dict[str, Any]] = {  # 8 experts in 2 groups, of which a token takes 1
    "deepseek_v3": {},
    "glm4_moe": {},
    "deepseek_v2": {"topk_method": "group_limited_greedy", "norm_topk_prob": False},
}


def scored(family: str, folder: Path) -> tuple[Path, Path]:
    """Make a model of a family and score it: folders of both."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(make_tiny_mixtral(folder / "tiny"))
    more = {"n_group": 2, "topk_group": 1, "vocab_size": len(tokenizer), **GROUPED[family]}
    base = make_family(family, folder / "base", **more)
    tokenizer.save_pretrained(base)
    spec = f"prose={write_text(folder / 'prose.txt')}:4"
    flags = ["--length", "32", "--device", "cpu", "--dtype", "float32", "--out", folder / "scores"]
    assert invoke("score", "--model", base, "--calibration", spec, *flags).exit_code == 0
    return base, folder / "scores"


@pytest.fixture(scope="module")
def scores(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return scored("deepseek_v3", tmp_path_factory.mktemp("grouped"))[1]


@pytest.mark.parametrize("family", GROUPED)
def test_a_plan_keeps_equally_many_of_each_group_and_its_checkpoint_loads(
    family: str, tmp_path: Path
) -> None:
    from transformers import AutoModelForCausalLM

    base, scores = scored(family, tmp_path)

    plan, out = tmp_path / "map", tmp_path / "out"
    assert invoke("plan", "--scores", scores, "--keep", "4", "--out", plan).exit_code == 0
    routing_map = RoutingMap.load(plan)
    assert routing_map.num_groups == 2 and routing_map.form == "plain"
    for layer in routing_map.layers:
        assert layer.experts.kept is not None
        assert [expert // 4 for expert in layer.experts.kept] == [0, 0, 1, 1]
    assert invoke("build", "--model", base, "--map", plan, "--out", out).exit_code == 0
    before, after = load_file(base / "model.safetensors"), load_file(out / "model.safetensors")
    for layer in routing_map.layers:  # the bias that also chooses goes with the gate's rows
        ids = list(layer.experts.kept or ())
        gate = [n for n in before if n.startswith(f"model.layers.{layer.layer}.mlp.gate.")]
        assert len(gate) == (1 if family == "deepseek_v2" else 2)
        assert all(torch.equal(after[name], before[name][ids]) for name in gate)
    model, base_model = (
        AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32) for folder in (out, base)
    )
    assert model.config.n_routed_experts == 4
    for name in ("routed_scaling_factor", "n_group", "topk_group", "num_experts_per_tok"):
        assert getattr(model.config, name) == getattr(base_model.config, name)
    with torch.inference_mode():
        assert torch.isfinite(model(torch.arange(3, 27)[None]).logits).all()


PLANS = [
    (["--budget", "13"], [6, 6], "--budget 13: 12 experts at most, so that the router's 2 groups"),
    (["--budget", "12"], [6, 6], None),
    (["--ratio", "0.4"], [6, 6], "--ratio 0.4: 6 experts per layer, so that the router's 2 groups"),
    (["--ratio", "0.3"], [6, 6], None),
    (["--ratio", "0.2"], [8, 8], "--ratio 0.2: 8 experts per layer, so that the router's 2 groups"),
    (["--keep", "6", "--friendly"], [8, 8], "--friendly: 8 experts instead of 6 in layers 1-2"),
    (["--keep", "4", "--protect", "1:0-1,2:7"], [4, 4], None),
]


@pytest.mark.parametrize(("flags", "kept", "note"), PLANS, ids=[" ".join(p[0]) for p in PLANS])
def test_budgets_are_rounded_to_what_groups_can_share(
    flags: list[str], kept: list[int], note: str | None, scores: Path, tmp_path: Path
) -> None:
    out = tmp_path / "map"
    result = invoke("plan", "--scores", scores, *flags, "--json", "--out", out)
    counts = [layer.num_kept for layer in RoutingMap.load(out).layers]
    assert sorted(counts, reverse=True) == kept
    told = json.loads(result.stdout)["rounded"]
    assert len(told) == (note is not None) and all(line.startswith(note or "") for line in told)
    assert all(f"note: {line}" in result.stderr for line in told)


REFUSED = [
    (["--keep", "5"], "layer 1: the router's 2 groups cannot share 5 experts equally"),
    (["--keep", "2"], "layer 1: the router takes top-2 from 1 of 2 groups, for which 2 kept"),
    (
        ["--keep", "4", "--protect", "2:4-6"],
        "layer 2, router group 1, keeps 2 experts, but 3 of them are protected: 4, 5, 6",
    ),
    (
        ["--keep", "4", "--merge", "output-similarity"],
        "--merge: the router first chooses among 2 groups",
    ),
]


@pytest.mark.parametrize(("flags", "message"), REFUSED, ids=[m for _, m in REFUSED])
def test_what_groups_cannot_do_is_one_line(
    flags: list[str],
    message: str,
    scores: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    result = run("plan", "--scores", scores, *flags, "--out", tmp_path / "map", capsys=capsys)
    assert one_error(*result).startswith(message)
    assert list(tmp_path.iterdir()) == []


def test_the_hint_names_the_nearest_counts(
    scores: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for count, hint in (("5", "keep 4 or 6"), ("3", "keep 4")):
        flags = ["--keep", count, "--out", tmp_path / "map"]
        _, stderr = run("plan", "--scores", scores, *flags, capsys=capsys)
        assert f"hint: {hint}\n" in stderr
