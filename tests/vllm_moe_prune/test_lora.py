"""LoRA adapters on top of a pruned model in vLLM: on attention they work, elsewhere are refused."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from offline.build.build import build
from tests.reference import greedy, reference_model
from tests.sample_maps import mixed_map, uniform_map
from tests.tiny import make_tiny_mixtral
from tests.vllm_moe_prune.test_parity import FLOAT32_LIMIT, PROMPTS, assert_equal
from tests.vllm_probe import probe
from vllm_moe_prune.checkpoint import Checkpoint
from vllm_moe_prune.errors import PruneError
from vllm_moe_prune.routing_map import RoutingMap

STEPS = 8
ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_mixtral(tmp_path_factory.mktemp("base"), layers=4)


def adapted(model: Any, out: Path, seed: int) -> Any:
    """Put a random adapter on a transformers model and save it."""
    from peft import LoraConfig, get_peft_model

    generator = torch.Generator().manual_seed(seed)
    model = get_peft_model(
        model, LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj"])
    )
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_" in name:
                weight.copy_(torch.randn(weight.shape, generator=generator) * 0.3)
    model.save_pretrained(out)
    return model


@pytest.mark.vllm
@pytest.mark.parametrize("form", ["plain", "compact", "map only"])
def test_attention_adapters_equal_peft_on_the_reference(
    base: Path, tmp_path: Path, form: str
) -> None:
    """Two adapters and the model itself in one batch."""
    routing_map, folder, more = _pruned(base, tmp_path, form)
    adapters = [tmp_path / "first", tmp_path / "second", None]
    expected = []
    for seed, adapter in enumerate(adapters):
        model = reference_model(base, routing_map, torch.float32)
        model = adapted(model, adapter, seed) if adapter else model
        expected.append(greedy(model, PROMPTS[0], STEPS))
    assert len({tuple(tokens) for tokens, _ in expected}) == 3
    answers = probe(
        folder,
        [PROMPTS[0]] * 3,
        steps=STEPS,
        adapters=adapters,
        load_format="pruned_moe",
        dtype="float32",
        enable_lora=True,
        # One more than adapters: vLLM's CPU kernels give requests without one the last slot's.
        max_loras=3,
        max_lora_rank=8,
        lora_target_modules=ATTENTION,
        **more,
    )
    assert_equal(answers, expected, FLOAT32_LIMIT)


def _pruned(base: Path, out: Path, form: str) -> tuple[RoutingMap, Path, dict[str, Any]]:
    routing_map = uniform_map(base, [(0, 2, 5, 7)] * 4) if form == "plain" else mixed_map(base)
    if form == "map only":
        routing_map.save(out / "map")
        return routing_map, base, {"model_loader_extra_config": {"routing_map": str(out / "map")}}
    assert build(Checkpoint.open(base), routing_map, out / "model").form == form
    return routing_map, out / "model", {}


@pytest.mark.parametrize("targets", [None, ["q_proj", "gate"], ["model.layers.0.mlp.experts"]])
def test_adapters_beyond_attention_are_refused(targets: list[str] | None) -> None:
    pytest.importorskip("vllm")
    from vllm_moe_prune.vllm_compat.limits import check_lora

    config: Any = SimpleNamespace(lora_config=SimpleNamespace(target_modules=targets))
    with pytest.raises(PruneError, match=r"attention only.*--lora-target-modules q_proj"):
        check_lora(config)


@pytest.mark.parametrize("lora", [None, SimpleNamespace(target_modules=ATTENTION)])
def test_attention_adapters_are_not_refused(lora: Any) -> None:
    pytest.importorskip("vllm")
    from vllm_moe_prune.vllm_compat.limits import check_lora
    from vllm_moe_prune.vllm_compat.lora import experts_without_lora

    config: Any = SimpleNamespace(lora_config=lora)
    check_lora(config)
    with experts_without_lora(config):
        assert config.lora_config is None
    assert config.lora_config is lora
