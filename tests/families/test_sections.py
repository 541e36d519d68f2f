"""Llama-4 as it is released: a language model beside a vision tower, in one checkpoint."""

from __future__ import annotations

import json
from pathlib import Path
from typing import get_args

import pytest
import torch

from offline.build.build import build
from offline.calibration.memory import estimate
from offline.engines.local.pretrained import from_pretrained
from offline.finetune.memory import memory_need
from offline.finetune.settings import FinetuneSettings
from offline.texts.spec import Part
from tests.families.models import EXPERTS, make_family
from tests.finetune.samples import text, tune
from tests.sample_maps import uniform_map
from vllm_moe_prune.checkpoint import Checkpoint
from vllm_moe_prune.errors import PruneError
from vllm_moe_prune.layouts import layout_of
from vllm_moe_prune.tuning import Trainable


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return Checkpoint.open(make_family("llama4", tmp_path_factory.mktemp("llama4")))


def beside(checkpoint: Checkpoint) -> dict[str, bytes]:
    """The bytes of all tensors that are not the language model's."""
    names = [name for name in checkpoint.tensors if not name.startswith("language_model.")]
    return {name: checkpoint.raw(name) for name in names}


def test_the_vision_tower_stays_and_the_section_has_the_counts(
    base: Checkpoint, tmp_path: Path
) -> None:
    build(base, uniform_map(base.folder, [(1, 2, 5)] * 3, top_k=1), tmp_path / "out")
    out = Checkpoint.open(tmp_path / "out")
    vision = beside(base)
    assert any(".layers." in name for name in vision)
    assert any("multi_modal_projector" in name for name in vision)
    assert beside(out) == vision and out.expert_counts() == dict.fromkeys(range(3), 3)
    section = {**base.config["text_config"], "num_local_experts": 3}
    assert out.config == {**base.config, "text_config": section}


def test_the_estimates_are_of_the_language_model_alone(base: Checkpoint, tmp_path: Path) -> None:
    """As if its tensors and its config were all that there is."""
    alone = Checkpoint.open(make_family("llama4_text", tmp_path / "text"))
    found, expected = (
        estimate(one, [Part("a", "prose", 4)], length=32, tokens_per_batch=64, gradients=True)
        for one in (base, alone)
    )
    assert found == expected
    for trainable in get_args(Trainable):
        settings = FinetuneSettings(trainable=trainable)
        needs = [memory_need(one, settings, length=32, micro=2) for one in (base, alone)]
        assert needs[0] == needs[1]


def test_a_finetune_changes_the_language_model_alone(base: Checkpoint, tmp_path: Path) -> None:
    tune(base.folder, tmp_path / "out", text(vocab=60), trainable="router+experts")
    out = Checkpoint.open(tmp_path / "out")
    assert out.tensors.keys() == base.tensors.keys() and beside(out) == beside(base)
    changed = {n for n in base.tensors if not torch.equal(out.tensor(n), base.tensor(n))}
    assert changed == {n for n in base.tensors if base.layout.classify(n) is not None}


def test_what_is_left_out_is_not_listed(
    base: Checkpoint, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    model = from_pretrained(base.folder, "float32")
    assert type(model).__name__ == "Llama4ForCausalLM"
    assert "vision_model" not in capfd.readouterr().err + caplog.text


def test_dense_layers_between_those_with_experts(tmp_path: Path) -> None:
    more = {"num_hidden_layers": 4, "interleave_moe_layer_step": 2, "no_rope_layers": [1, 1, 1, 0]}
    found = Checkpoint.open(make_family("llama4", tmp_path / "base", **more))
    assert found.expert_counts() == {1: EXPERTS, 3: EXPERTS}
    build(found, uniform_map(found.folder, [(0, 3), (2, 7)], top_k=1), tmp_path / "out")
    out = Checkpoint.open(tmp_path / "out")
    dense = [n for n in found.tensors if ".layers.0.feed_forward." in n]
    assert len(dense) == 3 and all(out.raw(n) == found.raw(n) for n in dense)


def test_experts_under_other_names_are_refused(base: Checkpoint) -> None:
    name = "language_model.model.layers.0.feed_forward.experts.0.gate_proj.weight"
    with pytest.raises(PruneError, match=f"tensor {name} .* is not known for llama4"):
        base.layout.classify(name)


def test_a_config_without_its_section_is_refused(base: Checkpoint, tmp_path: Path) -> None:
    fields = {k: v for k, v in base.config.items() if k != "text_config"}
    (tmp_path / "config.json").write_text(json.dumps(fields))
    with pytest.raises(PruneError, match="no usable num_local_experts"):
        layout_of(fields).num_experts(fields)
