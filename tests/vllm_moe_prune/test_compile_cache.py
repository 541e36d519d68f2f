"""Compiled code on the disk: each routing map has its own, and finds it again."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.reference import greedy, reference_model
from tests.sample_maps import kept_map
from tests.tiny import make_tiny_mixtral
from tests.vllm_probe import Answer, probe
from vllm_moe_prune.routing_map import RoutingMap

pytestmark = [pytest.mark.vllm, pytest.mark.slow]

PROMPTS = [[1, 5, 9, 20, 33, 7], [1, 40, 41, 42]]
STEPS = 6
WIDE, NARROW = (0, 2, 3, 5, 6, 7), (1, 3, 4, 6)
EACH = (2, 2)  # active in each layer


def test_two_maps_of_one_base_have_two_entries(tmp_path: Path) -> None:
    """Same base, same largest count. Mixtral's gate [E', D] is in the compiled graph."""
    base = make_tiny_mixtral(tmp_path / "base", layers=2)
    cache = tmp_path / "cache"

    def answers(routing_map: RoutingMap) -> list[Answer]:
        routing_map.save(tmp_path / routing_map.digest())
        extra = {"routing_map": str(tmp_path / routing_map.digest())}
        return probe(
            base,
            PROMPTS,
            steps=STEPS,
            env={"VLLM_CACHE_ROOT": str(cache)},
            load_format="pruned_moe",
            model_loader_extra_config=extra,
            dtype="float32",
            enforce_eager=False,
        )

    first, second = kept_map(base, (WIDE, NARROW), EACH), kept_map(base, (NARROW, WIDE), EACH)
    for routing_map, entries in ((first, 1), (second, 2), (first, 2)):
        found = answers(routing_map)
        assert len(list(cache.glob("torch_compile_cache/torch_aot_compile/*"))) == entries
        model = reference_model(base, routing_map, torch.float32)
        for prompt, (tokens, logprobs) in zip(PROMPTS, found, strict=True):
            wanted, wanted_logprobs = greedy(model, prompt, STEPS)
            assert tokens == wanted
            torch.testing.assert_close(
                torch.tensor(logprobs), torch.tensor(wanted_logprobs), rtol=0, atol=2e-3
            )
