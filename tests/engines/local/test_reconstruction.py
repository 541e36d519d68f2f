"""NAEE's discrepancy of expert subsets against applying each subset as a routing map."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from offline.engines.local import reconstruction
from offline.engines.local.reconstruction import subsets_of
from offline.engines.local.transformers import TransformersEngine
from offline.tasks.catalog import Task, get_task
from offline.tasks.harness import texts_of
from tests.engines.local.test_transformers_engine import naive_block
from tests.sample_maps import uniform_map
from tests.tiny import random_map
from vllm_moe_prune.errors import PruneError


@pytest.fixture
def text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Task:
    monkeypatch.setenv("VMPRUNE_CACHE", str(tmp_path / "cache"))
    lines = [f'{{"text": "w{70 + n} the cat sees w{90 + n} a fish"}}\n' for n in range(20)]
    (tmp_path / "words.jsonl").write_text("".join(lines))
    return get_task(f"text:{tmp_path / 'words.jsonl'}")


def block_inputs(engine: TransformersEngine, text: Task, limit: int) -> dict[int, Any]:
    """Inputs [T, D] of each layer's block for the tokens that are fed: all but the last."""
    seen: dict[int, list[Any]] = {0: [], 1: []}
    hooks = [
        layer.mlp.register_forward_pre_hook(
            lambda _, given, number=number: seen[number].append(given[0].flatten(0, -2).double())
        )
        for number, layer in enumerate(engine.model.model.layers)
    ]
    for _, passage in texts_of(text, "test", limit):
        engine.logits([engine.tokenizer.encode(passage)[:-1]])
    for hook in hooks:
        hook.remove()
    return {number: torch.cat(parts).numpy() for number, parts in seen.items()}


@pytest.mark.parametrize(("keep", "top_k"), [(4, None), (2, 1), (1, None)])
def test_equals_the_difference_of_whole_blocks(
    keep: int, top_k: int | None, engine: TransformersEngine, tiny: Path, text: Task
) -> None:
    engine.apply(random_map(tiny, np.random.default_rng(1), kinds=("w_em",)))  # plays no part
    applied = engine._applied
    found = engine.reconstruction_losses(text, "test", 6, keep, top_k=top_k)
    assert engine._applied is applied
    engine.apply(None)
    full = uniform_map(tiny, [range(8)] * 2)
    for layer, x in block_inputs(engine, text, 6).items():
        assert list(found[layer]) == list(itertools.combinations(range(8), keep))
        whole = naive_block(tiny, layer, full, x)
        for subset in list(found[layer])[:: max(1, len(found[layer]) // 7)]:
            kept = uniform_map(tiny, [subset] * 2, top_k or min(2, keep))
            expected = np.linalg.norm(whole - naive_block(tiny, layer, kept, x))
            assert found[layer][subset] == pytest.approx(expected, rel=2e-3)


def test_keeping_all_loses_nothing_and_sizes_may_differ(
    engine: TransformersEngine, text: Task
) -> None:
    found = engine.reconstruction_losses(text, "test", 6, {0: 8, 1: 5}, top_k={1: 3})
    assert found[0] == {tuple(range(8)): 0.0}
    assert len(found[1]) == 56 and min(found[1].values()) > 0


def test_chunks_change_nothing(
    engine: TransformersEngine, text: Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    at_once = engine.reconstruction_losses(text, "test", 6, 4)
    monkeypatch.setattr(reconstruction, "_TOKENS", 7)
    monkeypatch.setattr(reconstruction, "_WEIGHTS", 300)
    in_parts = engine.reconstruction_losses(text, "test", 6, 4)
    for layer, subsets in at_once.items():
        assert in_parts[layer] == pytest.approx(subsets, rel=1e-5)


def test_many_subsets_are_sampled_by_seed() -> None:
    assert len(subsets_of(8, 4)) == 70
    some = subsets_of(60, 20, most=50, seed=1)
    assert len(set(some)) == 50 == len(some)
    assert all(len(set(subset)) == 20 and max(subset) < 60 for subset in some)
    assert some == subsets_of(60, 20, most=50, seed=1) != subsets_of(60, 20, most=50, seed=2)


def test_impossible_subsets_are_refused(engine: TransformersEngine, text: Task) -> None:
    with pytest.raises(PruneError, match="cannot keep 9 of 8"):
        engine.reconstruction_losses(text, "test", 6, 9)
    with pytest.raises(PruneError, match="layer 0: top-2 needs as many"):
        engine.reconstruction_losses(text, "test", 6, 1, top_k=2)
