"""Which parameters are trained, and that LoRA's result is the model that was trained."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from transformers import AutoModelForCausalLM

from offline.finetune.parts import parts_of
from offline.finetune.settings import FinetuneSettings
from offline.finetune.trainable import merged, prepare, trained
from tests.calibration.families import make
from tests.finetune.samples import tiny
from vllm_moe_prune.checkpoint import Checkpoint
from vllm_moe_prune.layouts import LAYOUTS
from vllm_moe_prune.tuning import Trainable

IDS = torch.tensor([[3, 14, 15, 9, 26, 5, 35, 8], [9, 7, 9, 3, 2, 38, 46, 2]])


def names(model: Any) -> set[str]:
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


@pytest.mark.parametrize("family", ["mixtral", "qwen3", "deepseek"])
def test_routers_and_experts_are_found_in_every_family(family: str) -> None:
    model, layout = make(family)
    layers = [0, 1] if family == "mixtral" else [0, 2] if family == "qwen3" else [1, 2]
    routers = {f"model.layers.{layer}.mlp.gate.weight" for layer in layers}
    experts = {
        f"model.layers.{layer}.mlp.experts.{name}"
        for layer in layers
        for name in ("gate_up_proj", "down_proj")
    }
    everything = names(model)
    for setting, wanted in {
        "router": routers,
        "router+experts": routers | experts,
        "all": everything,
    }.items():
        prepare(model, layout, FinetuneSettings(trainable=setting), seed=0)
        assert names(model) == wanted


@pytest.mark.parametrize("family", ["mixtral", "qwen3", "deepseek"])
def test_a_merged_adapter_is_the_model_that_was_trained(family: str) -> None:
    model, layout = make(family, torch.float32)
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    plain = model(input_ids=IDS).logits
    settings = FinetuneSettings(trainable="lora", lora_rank=3, lora_alpha=5.0)
    adapted = prepare(model, layout, settings, seed=0)
    assert torch.equal(adapted(input_ids=IDS).logits, plain)  # begins as the model
    with torch.no_grad():
        for parameter in trained(adapted):
            parameter.add_(torch.randn(parameter.shape) * 0.1)
    wanted = adapted(input_ids=IDS).logits
    assert (wanted - plain).abs().max() > 0.1
    found = merged(adapted)
    assert set(found.state_dict()) == set(before)
    torch.testing.assert_close(found(input_ids=IDS).logits, wanted, atol=1e-4, rtol=1e-4)
    changed = {n for n, w in found.state_dict().items() if not torch.equal(w, before[n])}
    matrices = {n for n, w in before.items() if ".layers." in n and w.dim() > 1}
    assert changed == matrices


def test_the_seed_decides_the_adapters_and_leaves_other_randomness_alone() -> None:
    def first(seed: int) -> torch.Tensor:
        model, layout = make("mixtral", torch.float32)
        adapted = prepare(model, layout, FinetuneSettings(trainable="lora"), seed)
        return trained(adapted)[0].detach()

    torch.manual_seed(4)
    wanted = torch.rand(3)
    torch.manual_seed(4)
    assert torch.equal(first(1), first(1))
    assert torch.equal(torch.rand(3), wanted)
    assert not torch.equal(first(1), first(2))


@pytest.mark.parametrize("tie", [False, True])
@pytest.mark.parametrize("setting", get_args(Trainable))
def test_the_header_tells_how_much_is_trained(
    setting: Trainable, tie: bool, tmp_path: Path
) -> None:
    folder = tiny(tmp_path / "m", experts=3, tie=tie)
    settings = FinetuneSettings(trainable=setting, lora_rank=5)
    parts = parts_of(Checkpoint.open(folder), settings)
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    assert sum(part.parameters for part in parts) == model.num_parameters()
    model = prepare(model, LAYOUTS["mixtral"], settings, seed=0)
    counted = sum(parameter.numel() for parameter in trained(model))
    assert sum(part.trained for part in parts) == counted
    assert sum(part.trained_bytes for part in parts) == 4 * counted
