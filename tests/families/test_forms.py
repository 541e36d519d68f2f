"""One model in several forms: other names, experts stacked or one by one, all the same model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from offline.build.build import build
from tests.families.models import ALWAYS, CONFIGS, make_family
from tests.families.quantised import tensors_of, write
from tests.families.test_build import IDS, loaded, sliced_map
from vllm_moe_prune.checkpoint import Checkpoint
from vllm_moe_prune.errors import PruneError
from vllm_moe_prune.layouts import LAYOUTS

QUICK = ("mixtral", "qwen3_moe", "granitemoe", "ernie4_5_moe")
# Stacked on disk already, under the same names.
SAME = ("gpt_oss", "llama4_text", "llama4", "gemma4_text", "gemma4")
SAME += ("minimax_m3_vl_text", "qwen3_vl_moe")
CASES = [
    pytest.param(family, marks=() if family in QUICK else pytest.mark.slow)
    for family in CONFIGS
    if family not in SAME
]


def in_own_form(family: str, folder: Path) -> Path:
    """Save a tiny model as transformers 5 has it in memory."""
    make_family(family, folder / "usual")
    model = loaded(folder / "usual")
    model.save_pretrained(folder / "own", save_original_format=False)
    config = (folder / "usual" / "config.json").read_text()
    (folder / "own" / "config.json").write_text(config)
    return folder / "own"


@torch.no_grad()
@pytest.mark.parametrize("family", CASES)
def test_what_transformers_has_in_memory_is_the_same_model(family: str, tmp_path: Path) -> None:
    own = Checkpoint.open(in_own_form(family, tmp_path))
    usual = Checkpoint.open(tmp_path / "usual")
    assert own.tensors.keys() != usual.tensors.keys()
    assert own.expert_counts() == usual.expert_counts()
    assert own.layout.form().stacked and own.layout.form() != usual.layout.form()
    for name, base in (("own", own), ("usual", usual)):
        build(base, sliced_map(base), tmp_path / f"{name}-out")
    written = Checkpoint.open(tmp_path / "own-out")
    assert written.tensors.keys() == own.tensors.keys()  # a build keeps the form
    found, expected = (loaded(tmp_path / f"{name}-out")(IDS).logits for name in ("own", "usual"))
    assert torch.equal(found, expected)


def renamed(folder: Path, begin: str) -> None:
    """Give all tensors names with another beginning in place of ``model.``."""
    tensors = tensors_of(folder)
    moved = {
        begin + name.removeprefix("model.") if name.startswith("model.") else name: tensor
        for name, tensor in tensors.items()
    }
    config = json.loads((folder / "config.json").read_text())
    write(folder, moved, config, shards=1)


@pytest.mark.parametrize(
    ("begin", "prefix"),
    [
        ("", ""),
        ("language_model.", "language_model."),
        ("language_model.model.", "language_model."),
        ("model.language_model.", "model.language_model."),
    ],
)
def test_names_may_begin_otherwise(begin: str, prefix: str, tmp_path: Path) -> None:
    usual = Checkpoint.open(make_family("qwen3_moe", tmp_path / "usual"))
    make_family("qwen3_moe", tmp_path / "other")
    renamed(tmp_path / "other", begin)
    other = Checkpoint.open(tmp_path / "other")
    assert other.layout.prefix == prefix and usual.layout.prefix == ""
    assert other.layout.router_name(2) == f"{begin}layers.2.mlp.gate.weight"
    for name, base in (("other", other), ("usual", usual)):
        build(base, sliced_map(base), tmp_path / f"{name}-out")
    found, expected = (Checkpoint.open(tmp_path / f"{name}-out") for name in ("other", "usual"))
    assert len(found.tensors) == len(expected.tensors) < len(usual.tensors)
    for name in expected.tensors:
        inside = name.removeprefix("model.")
        assert found.raw(begin + inside if inside != name else name) == expected.raw(name)


def test_each_layer_has_its_own_form(tmp_path: Path) -> None:
    """Layer 0 as transformers has it, layer 2 as it is released."""
    own, usual = tensors_of(in_own_form("qwen3_moe", tmp_path)), tensors_of(tmp_path / "usual")
    mixed = {name: tensor for name, tensor in usual.items() if ".layers.0." not in name}
    mixed |= {name: tensor for name, tensor in own.items() if ".layers.0." in name}
    config = json.loads((tmp_path / "usual" / "config.json").read_text())
    (tmp_path / "mixed").mkdir()
    write(tmp_path / "mixed", mixed, config, shards=1)
    base = Checkpoint.open(tmp_path / "mixed")
    assert [bool(base.layout.form(layer).stacked) for layer in (0, 2)] == [True, False]
    build(base, sliced_map(base), tmp_path / "mixed-out")
    build(Checkpoint.open(tmp_path / "usual"), sliced_map(Checkpoint.open(tmp_path / "usual")),
          tmp_path / "usual-out")  # fmt: skip
    out, expected = (Checkpoint.open(tmp_path / name) for name in ("mixed-out", "usual-out"))
    gate_up = out.tensor("model.layers.0.mlp.experts.gate_up_proj")
    for expert in range(4):
        name = f"model.layers.0.mlp.experts.{expert}.gate_proj.weight"
        assert torch.equal(gate_up[expert, :32], expected.tensor(name))
        name = f"model.layers.2.mlp.experts.{expert}.down_proj.weight"
        assert out.raw(name) == expected.raw(name)


def test_two_forms_in_one_layer_are_refused(tmp_path: Path) -> None:
    both = tensors_of(in_own_form("qwen3_moe", tmp_path)) | tensors_of(tmp_path / "usual")
    config = json.loads((tmp_path / "usual" / "config.json").read_text())
    (tmp_path / "both").mkdir()
    write(tmp_path / "both", both, config, shards=1)
    with pytest.raises(PruneError, match=r"layer 0 has experts in two forms: model\.layers\.0"):
        Checkpoint.open(tmp_path / "both")


def test_a_refusal_says_what_was_expected_and_what_to_do() -> None:
    with pytest.raises(PruneError) as caught:
        LAYOUTS["qwen3_moe"].classify("model.layers.3.mlp.experts.0.w1.weight")
    assert "model.layers.3.mlp.experts.0.w1.weight" in caught.value.message
    assert caught.value.hint == (
        "expected experts as mlp.experts.N.gate_proj.weight with the gate mlp.gate.weight or "
        "experts as mlp.experts.gate_up_proj with the gate mlp.gate.weight; "
        "`vmprune inspect MODEL --explain` shows what is recognised of the model"
    )


def test_a_known_family_that_cannot_lose_experts_says_why(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "ernie4_5_vl_moe"}')
    with pytest.raises(PruneError, match="its text and vision experts are one list"):
        Checkpoint.open(tmp_path)


def test_the_families_that_always_run_are_tested_quickly() -> None:
    assert set(QUICK) <= set(ALWAYS)
