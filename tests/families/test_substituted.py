"""Constant vectors in place of experts, in transformers and in vLLM, against a naive reference.

Of every family whose experts can be substituted: whatever its router does, it does it as before.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.dummy_model import write_tokenizer
from offline.build.build import build
from offline.engines.local.transformers import TransformersEngine
from tests.families.constants import constant, is_substitutable, saved, substituted_map
from tests.families.masking import without
from tests.families.models import CONFIGS, load, make_family
from tests.families.serving import serving_of
from tests.families.test_serving import PARALLEL, PROMPTS, STEPS, difference
from tests.reference import greedy
from tests.vllm_probe import Answer, probe
from vllm_moe_prune.checkpoint import Checkpoint
from vllm_moe_prune.errors import PruneError
from vllm_moe_prune.routing_map import RoutingMap

# Fewer kept than active, not as many of each of two groups, and nothing to substitute.
KEPT = {0: (5,), 1: (6, 0, 5), 2: tuple(range(8))}
EVEN = {0: (5, 0, 3, 6), 1: (6, 2, 5, 7), 2: (0, 1, 2, 3)}
# Renormalising or not, with groups, a correction bias and a scale beside shared experts.
ALWAYS = ("mixtral", "qwen2_moe", "deepseek_v3")
SERVED = ("mixtral", "deepseek_v3")
# In bfloat16, all that a CPU has for linear attention, tokens choose other experts, and random
# vectors are no small difference: without it, in float32.
EXACT = {"qwen3_next": {"full_attention_interval": 1}}
UNKNOWN = ("kimi_k2",)
# Whose routers the transformers engine leaves as they are.
UNTRIED = ("phimoe", "ernie4_5_moe", "gemma4", "gemma4_text")


def cases(always: tuple[str, ...]) -> list[Any]:
    return [
        pytest.param(family, marks=() if family in always else pytest.mark.slow)
        for family in CONFIGS
        if is_substitutable(family)
    ]


def made(family: str, folder: Path) -> Checkpoint:
    make_family(family, folder, **EXACT.get(family, serving_of(family).model))
    write_tokenizer(folder, 60)
    return Checkpoint.open(folder)


def answers(base: Checkpoint, vectors: Any, dtype: torch.dtype) -> list[Answer]:
    """What transformers says with constants in place of experts."""
    model = load(base.folder, dtype)
    with constant(model, vectors):
        return [greedy(model, prompt, STEPS) for prompt in PROMPTS]


@pytest.mark.parametrize("family", cases(ALWAYS))
def test_transformers_gives_what_the_reference_gives(family: str, tmp_path: Path) -> None:
    base = made(family, tmp_path / "model")
    if family in UNKNOWN:
        pytest.skip("transformers has no such model")
    engine = TransformersEngine(base.folder, dtype="float32")
    before = [engine.logits([prompt]) for prompt in PROMPTS]
    for kept in (KEPT, EVEN):
        routing_map, vectors = substituted_map(base, kept)
        engine.apply(None)
        if family in UNTRIED:
            with pytest.raises(PruneError, match="cannot try routing maps of this"):
                engine.apply(routing_map)
            continue
        with constant(engine.model, vectors):
            wanted = [engine.logits([prompt]) for prompt in PROMPTS]
        engine.apply(routing_map)
        for prompt, expected in zip(PROMPTS, wanted, strict=True):
            found = engine.logits([prompt])
            assert (found - expected).abs().max() < 1e-4
        apart = [(one - other).abs().max() for one, other in zip(wanted, before, strict=True)]
        assert max(apart) > 0.1
    engine.apply(None)
    assert torch.equal(engine.logits(PROMPTS[:1]), before[0])


@pytest.mark.vllm
@pytest.mark.parametrize("parallel", ["TP1", pytest.param("TP2", marks=pytest.mark.slow)])
@pytest.mark.parametrize("family", cases(SERVED))
def test_vllm_serves_what_the_reference_gives(family: str, parallel: str, tmp_path: Path) -> None:
    """Layers that differ as a compact checkpoint, then with equal counts as a map of the base."""
    serving, base = serving_of(family), made(family, tmp_path / "model")
    own = {} if family in EXACT else serving.arguments
    arguments = {"dtype": "float32", **own, **PARALLEL[parallel]}
    if serving.refused:
        pytest.skip("vLLM cannot, of the base neither: see test_serving")

    def check(folder: Path, vectors: Any, **more: Any) -> None:
        found = probe(
            folder,
            PROMPTS,
            steps=STEPS,
            load_format="pruned_moe",
            skip_tokenizer_init=True,
            **arguments,
            **more,
        )
        exact = arguments["dtype"] == "float32"
        wanted = answers(base, vectors, getattr(torch, arguments["dtype"]))
        worst = difference(found, wanted, same_tokens=exact)
        print(f"{family}, {parallel}: {worst:.1e}")
        assert worst <= serving.limit

    routing_map, vectors = substituted_map(base, KEPT, top_k=min(2, _top_k(base)))
    assert build(base, routing_map, tmp_path / "out").form == "compact"
    if serving.uncompact:
        said = re.escape(serving.uncompact) if parallel == "TP1" else None  # by the rank alone
        with pytest.raises(RuntimeError, match=said):
            check(tmp_path / "out", vectors)
        return
    check(tmp_path / "out", vectors)
    if family not in SERVED[1:] or parallel == "TP2":  # enough of one family in all runs
        routing_map, vectors = substituted_map(base, EVEN)
        extra = saved(routing_map, tmp_path / "map")
        check(base.folder, vectors, model_loader_extra_config=extra)


def _top_k(base: Checkpoint) -> int:
    return base.layout.top_k(base.config)


@pytest.mark.slow
@pytest.mark.vllm
@pytest.mark.parametrize("family", ALWAYS)
def test_compiled(family: str, tmp_path: Path) -> None:
    serving, base = serving_of(family), made(family, tmp_path / "model")
    routing_map, vectors = substituted_map(base, KEPT)
    build(base, routing_map, tmp_path / "out")
    arguments = {"dtype": "float32", **serving.arguments, "enforce_eager": False}
    found = probe(
        tmp_path / "out",
        PROMPTS,
        steps=STEPS,
        load_format="pruned_moe",
        skip_tokenizer_init=True,
        **arguments,
    )
    wanted = answers(base, vectors, torch.float32)
    assert difference(found, wanted, same_tokens=True) <= serving.limit


@pytest.mark.parametrize("family", ["llama4_text"])
def test_families_without_one_output_are_refused(family: str, tmp_path: Path) -> None:
    base = made(family, tmp_path / "model")
    routing_map, _ = substituted_map(base, EVEN)
    with pytest.raises(PruneError, match="multiply what an expert is given"):
        build(base, routing_map, tmp_path / "out")
    engine = TransformersEngine(base.folder, dtype="float32")
    with pytest.raises(PruneError, match="multiply what an expert is given"):
        engine.apply(routing_map)


def test_a_dropped_expert_beside_constant_ones_is_gone(tmp_path: Path) -> None:
    """All fates in one layer: kept, substituted, dropped; scores of the dropped are removed."""
    base = made("mixtral", tmp_path / "model")
    whole, _ = substituted_map(base, EVEN)
    fields = [layer.model_dump() for layer in whole.layers]
    for layer in fields:
        ids = layer["substituted"]["experts"]
        layer["substituted"] = {"experts": ids[:2], "vectors": layer["substituted"]["vectors"]}
    matrices = {name: rows[:2] for name, rows in whole.matrices.items()}
    given = {**whole.model_dump(), "layers": fields}
    routing_map = RoutingMap.build(matrices=matrices, **given)
    vectors = {
        layer.layer: dict(zip(layer.constant_ids, routing_map.vectors(layer).tolist(), strict=True))
        for layer in routing_map.layers
    }
    there = {
        layer.layer: (*(layer.experts.kept or ()), *layer.constant_ids)
        for layer in routing_map.layers
    }
    engine = TransformersEngine(base.folder, dtype="float32")
    with without(engine.model, 8, there), constant(engine.model, vectors):
        wanted = engine.logits(PROMPTS[1:2])
    engine.apply(routing_map)
    assert (engine.logits(PROMPTS[1:2]) - wanted).abs().max() < 1e-4
