"""gpt-oss in MXFP4, as it is released, with counts that differ by layer: in vLLM's own code."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from offline.build.build import build
from tests.families.masking import without
from tests.families.models import EXPERTS
from tests.families.mxfp4 import make_mxfp4
from tests.families.test_serving import DIFFERENT, PROMPTS, UNIFORM, kept_map
from tests.sample_maps import map_of
from tests.vllm_probe import Answer, probe
from vllm_moe_prune.checkpoint import Checkpoint
from vllm_moe_prune.layer_map import LayerMap, Selection
from vllm_moe_prune.routing_map import RoutingMap

pytest.importorskip("vllm", reason="the plugin side needs vLLM")

from vllm.model_executor.model_loader import get_model_loader

from tests.engineless import alone, config_of, loaded

pytestmark = pytest.mark.vllm
_NAMES = {  # of vLLM's parameters -> of the checkpoint's tensors
    "w13_weight": "gate_up_proj_blocks",
    "w13_weight_scale": "gate_up_proj_scales",
    "w13_bias": "gate_up_proj_bias",
    "w2_weight": "down_proj_blocks",
    "w2_weight_scale": "down_proj_scales",
    "w2_bias": "down_proj_bias",
}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return make_mxfp4(tmp_path_factory.mktemp("gpt_oss"))


@pytest.fixture
def _here(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    from vllm.model_executor.model_loader import base_loader

    # What a kernel makes of the weights afterwards is not looked at, so any processor will do.
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: True)
    monkeypatch.setattr(base_loader, "process_weights_after_loading", lambda *_: None)
    with alone():
        yield


def mixed() -> list[LayerMap]:
    """Four experts kept; six in another order than the base's; three behind a mapped router."""
    common: dict[str, Any] = {"num_experts": 8, "top_k": 2}
    kept = ((0, 3, 4, 6), (7, 1, 2, 4, 5, 0), (6, 1, 2))
    return [
        LayerMap(
            layer=number,
            num_kept=len(ids),
            experts=Selection(kept=ids),
            router="mapped" if number == 2 else "sliced",
            **common,
        )
        for number, ids in enumerate(kept)
    ]


def test_every_layer_gets_the_blocks_of_its_own_experts(
    models: tuple[Path, Path], _here: None, tmp_path: Path
) -> None:
    base = Checkpoint.open(models[0])
    routing_map = map_of(base.folder, mixed())
    routing_map.save(tmp_path / "map")
    build(base, routing_map, tmp_path / "out")
    extra = {"routing_map": str(tmp_path / "map")}
    ways = [(tmp_path / "out", {}), (base.folder, {"model_loader_extra_config": extra})]
    for folder, arguments in ways:
        config = config_of(folder, dtype="bfloat16", load_format="pruned_moe", **arguments)
        model = loaded(config, tmp_path)
        assert config.model_config.hf_text_config.num_local_experts == 6
        for _ in range(2):  # the second time as vLLM loads weights again
            check(base, routing_map, model)
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter.zero_()
            weights = get_model_loader(config.load_config).get_all_weights(
                config.model_config, model
            )
            model.load_weights(weights)


def check(base: Checkpoint, routing_map: RoutingMap, model: torch.nn.Module) -> None:
    state = model.state_dict()
    for layer in routing_map.layers:
        ids = list(layer.experts.kept or ())
        theirs = f"model.layers.{layer.layer}.mlp."
        for ours, name in _NAMES.items():
            expected = base.tensor(f"{theirs}experts.{name}")[ids]
            found = state[f"{theirs}experts.routed_experts.{ours}"]
            assert torch.equal(found, expected.reshape(found.shape)), (layer.layer, ours)
        gate = base.tensor(f"{theirs}router.weight")
        sliced = gate[ids] if layer.router == "sliced" else gate
        assert torch.equal(state[f"{theirs}router.weight"], sliced)


@pytest.mark.slow
@pytest.mark.skipif(not torch.cpu._is_amx_tile_supported(), reason="vLLM's CPU kernel needs AMX")
def test_different_counts_are_served(models: tuple[Path, Path], tmp_path: Path) -> None:
    base, readable = (Checkpoint.open(folder) for folder in models)
    routing_map = kept_map(base, DIFFERENT)
    build(base, routing_map, tmp_path / "out")
    routing_map.save(tmp_path / "map")
    noise = distance(readable, None, served(base.folder))
    compact = served(tmp_path / "out", load_format="pruned_moe")
    extra = {"routing_map": str(tmp_path / "map")}
    map_only = served(base.folder, load_format="pruned_moe", model_loader_extra_config=extra)
    assert map_only == compact
    found = distance(readable, DIFFERENT, compact)
    other = distance(readable, {**DIFFERENT, 0: UNIFORM[1]}, compact)
    print(f"mean |log-probability difference|: base {noise:.2e}, pruned {found:.2e}, {other:.2e}")
    assert found <= 3 * noise
    assert other > 10 * noise  # another map is far off: the comparison can fail


def served(folder: Path, **arguments: Any) -> list[Answer]:
    return probe(folder, PROMPTS, steps=8, dtype="bfloat16", skip_tokenizer_init=True, **arguments)


def distance(
    readable: Checkpoint, kept: dict[int, tuple[int, ...]] | None, answers: list[Answer]
) -> float:
    """Mean difference of log-probabilities from transformers', along vLLM's own tokens."""
    from transformers import AutoModelForCausalLM

    model: Any = AutoModelForCausalLM.from_pretrained(readable.folder, dtype=torch.float32).eval()
    found = []
    for prompt, (tokens, logprobs) in zip(PROMPTS, answers, strict=True):
        with torch.no_grad(), without(model, EXPERTS, kept or {}):
            logits = model(torch.tensor([prompt + tokens])).logits[0, len(prompt) - 1 : -1]
        expected = torch.log_softmax(logits, dim=-1)
        found.append((expected - torch.tensor(logprobs)).abs().mean())
    return float(torch.stack(found).mean())
