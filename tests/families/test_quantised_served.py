"""Quantised experts served by vLLM, before and after pruning.

Its CPU kernels quantise activations as well or compute in bfloat16, so the yardstick is how far
vLLM is from transformers on the unpruned base, in both cases with the same dequantised weights.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from offline.build.build import build
from tests.families.quantised import FORMATS, SERVED, config_of, dequantise, quantise
from tests.reference import reference_model
from tests.sample_maps import map_of, uniform_map
from tests.tiny import make_tiny_mixtral
from tests.vllm_probe import Answer, probe
from vllm_moe_prune.checkpoint import Checkpoint
from vllm_moe_prune.layer_map import LayerMap, Selection
from vllm_moe_prune.routing_map import RoutingMap

PROMPTS = [[1, 5, 9, 20, 33, 7], [1, 40, 41, 42, 60, 61, 62, 63, 64], [1, 100, 3, 77]]
KEPT = [(6, 1, 3, 4), (0, 2, 7, 5)]
OTHERS = [(0, 2, 5, 7), (1, 3, 4, 6)]

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.slow,
    pytest.mark.skipif(
        not torch.cpu._is_amx_tile_supported(), reason="vLLM's CPU kernels need AMX"
    ),
]


class Models:
    """A quantised base, and the same in float32 for transformers."""

    def __init__(self, name: str, folder: Path) -> None:
        sizes = {"hidden": 128, "intermediate": 128, "heads": 4, "kv_heads": 4}
        original = make_tiny_mixtral(folder / "original", dtype="bfloat16", **sizes)
        self.base = quantise(original, folder / "base", FORMATS[name], config_of(name))
        self.readable = dequantise(self.base, folder / "readable", name)

    def distance(self, answers: list[Answer], routing_map: RoutingMap | None) -> float:
        """Mean difference of log-probabilities over the vocabulary, along vLLM's own tokens."""
        model = reference_model(self.readable, routing_map, torch.float32)
        found = []
        for prompt, (tokens, logprobs) in zip(PROMPTS, answers, strict=True):
            with torch.no_grad():
                logits = model(torch.tensor([prompt + tokens])).logits[0, len(prompt) - 1 : -1]
            expected = torch.log_softmax(logits, dim=-1)
            found.append((expected - torch.tensor(logprobs)).abs().mean())
        return float(torch.stack(found).mean())


@pytest.fixture(scope="module", params=SERVED)
def models(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Models:
    return Models(request.param, tmp_path_factory.mktemp(request.param))


@pytest.fixture(scope="module")
def noise(models: Models) -> float:
    """How far vLLM is from transformers on the base, where nothing is pruned."""
    return models.distance(served(models.base), None)


def served(folder: Path, **arguments: Any) -> list[Answer]:
    return probe(folder, PROMPTS, steps=8, dtype="bfloat16", **arguments)


def check(models: Models, answers: list[Answer], routing_map: RoutingMap, noise: float) -> None:
    found = models.distance(answers, routing_map)
    other = models.distance(answers, uniform_map(models.base, OTHERS))
    print(f"mean |log-probability difference|: base {noise:.2e}, pruned {found:.2e}, {other:.2e}")
    assert found <= 3 * noise
    assert other > 10 * noise  # another map is far off: the comparison can fail


def test_plain_in_stock_vllm(models: Models, noise: float, tmp_path: Path) -> None:
    routing_map = uniform_map(models.base, KEPT)
    plan = build(Checkpoint.open(models.base), routing_map, tmp_path / "out")
    assert (plan.form, plan.merged) == ("plain", 0)
    check(models, served(tmp_path / "out"), routing_map, noise)


def test_compact_and_map_only(models: Models, noise: float, tmp_path: Path) -> None:
    layers = [
        LayerMap(layer=0, num_experts=8, num_kept=3, top_k=2, experts=Selection(kept=(6, 1, 3))),
        LayerMap(
            layer=1,
            num_experts=8,
            num_kept=5,
            top_k=3,
            experts=Selection(kept=(0, 2, 7, 5, 4)),
            router="mapped",
        ),
    ]
    routing_map = map_of(models.base, layers)
    assert build(Checkpoint.open(models.base), routing_map, tmp_path / "out").form == "compact"
    compact = served(tmp_path / "out", load_format="pruned_moe")
    check(models, compact, routing_map, noise)
    routing_map.save(tmp_path / "map")
    extra = {"routing_map": str(tmp_path / "map")}
    map_only = served(models.base, load_format="pruned_moe", model_loader_extra_config=extra)
    assert [tokens for tokens, _ in map_only] == [tokens for tokens, _ in compact]
    for (_, found), (_, expected) in zip(map_only, compact, strict=True):
        torch.testing.assert_close(torch.tensor(found), torch.tensor(expected), rtol=0, atol=1e-5)
