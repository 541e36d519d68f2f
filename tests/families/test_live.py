"""Every family in the live engine: candidates against transformers with the same candidate.

Whatever a family's router does: masks, one-hot and mapped routers, merged experts. With
``--matrix`` the outcomes are written into docs/families.md.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks.dummy_model import write_tokenizer
from offline.build.build import build
from offline.engines.local.transformers import TransformersEngine
from tests.engines.served import requests
from tests.families.as_released import as_transformers
from tests.families.constants import constant, is_substitutable, substituted_map
from tests.families.masking import without
from tests.families.matrix import Matrix
from tests.families.models import CONFIGS, EXPERTS, READ_IN_PART, make_family
from tests.families.quantised import FORMATS, SERVED, config_of, dequantise, quantise
from tests.families.serving import serving_of
from tests.live_probe import probe_live
from tests.sample_maps import map_of
from tests.tiny import make_tiny_mixtral
from vllm_moe_prune.checkpoint import Checkpoint
from vllm_moe_prune.layer_map import LayerMap, Selection
from vllm_moe_prune.layouts import LAYOUTS
from vllm_moe_prune.routing_map import RoutingMap

pytestmark = pytest.mark.vllm

LIMIT = 1e-4
# A correction bias with groups, and a sparse mixer.
ALWAYS = ("deepseek_v3", "phimoe")
SPECIAL: dict[str, tuple[str, dict[str, Any]]] = {
    "deepseek_v3, one group": ("deepseek_v3", {"n_group": 1}),
    "deepseek_v2, groups": (
        "deepseek_v2",
        {"n_group": 2, "topk_method": "group_limited_greedy", "norm_topk_prob": False},
    ),
    "glm4_moe, groups": ("glm4_moe", {"n_group": 2}),
}
CASES = {one: (one, dict[str, Any]()) for one in (*CONFIGS, *READ_IN_PART)} | SPECIAL
PAIRS = tuple(
    (" ".join(f"w{5 + (7 * n + 3 * i) % 50}" for i in range(length)), f"w{9 + n} w{n + 4} w8")
    for n, length in enumerate((4, 9, 17, 30, 1, 12))
)
KEPT = {0: (0, 3, 4, 6), 1: (1, 2, 5, 7), 2: (2, 3, 6, 7)}  # two of each of two groups
MORE = {0: (0, 1, 3, 4, 5, 7), 1: (1, 2, 5, 7), 2: tuple(range(8))}


def kept_map(base: Checkpoint, kept: Mapping[int, tuple[int, ...]], **more: Any) -> RoutingMap:
    top_k, matrices = base.layout.top_k(base.config), more.pop("matrices", {})
    layers = [
        LayerMap(
            **{
                "layer": layer,
                "num_experts": count,
                "num_kept": len(kept[layer]),
                "top_k": top_k,
                "experts": Selection(kept=kept[layer]),
                **{name: make(layer) for name, make in more.items()},
            }
        )
        for layer, count in base.expert_counts().items()
    ]
    return map_of(base.folder, layers, **matrices)


def add_words(folder: Path) -> None:
    """Let words be tokens for a tokenizer, too, that has its family's own way to split text."""
    file = folder / "tokenizer_config.json"
    words = json.loads((folder / "tokenizer.json").read_text())["model"]["vocab"]
    added = {
        str(number): {
            **{"content": word, "lstrip": True, "rstrip": False, "single_word": True},
            **{"normalized": False, "special": False},
        }
        for word, number in words.items()
    }
    file.write_text(json.dumps(json.loads(file.read_text()) | {"added_tokens_decoder": added}))


def maps_of(base: Checkpoint) -> dict[str, RoutingMap | None]:
    """Return the candidates that a family's router can take, in the order of trying."""
    layout, rng = base.layout, np.random.default_rng(3)
    grouped = layout.num_groups(base.config) > 1
    found: dict[str, RoutingMap | None] = {"base": None, "counts": kept_map(base, MORE)}
    mixed = np.eye(EXPERTS, dtype=np.float32)[[1, 2, 5, 7]] + rng.normal(0, 0.2, (4, 8))
    mixed[2] = np.eye(EXPERTS)[6]  # a copy among sums
    if not grouped:
        found["merged"] = kept_map(
            base,
            KEPT,
            experts=lambda _: Selection(matrix="w"),
            router_rows=lambda layer: Selection(kept=KEPT[layer]),
            matrices={"w": mixed.astype(np.float32)},
        )
        if layout.mappable or layout.is_corrected:
            found["one-hot"] = kept_map(base, MORE, router=lambda _: "mapped")
        if layout.mappable:
            found["mapped"] = kept_map(
                base,
                KEPT,
                router=lambda _: "mapped",
                router_rows=lambda _: Selection(matrix="r"),
                matrices={"r": np.abs(mixed).astype(np.float32)},
            )
    if is_substitutable(layout.model_type):
        found["substituted"], _ = substituted_map(base, KEPT)
    return {**found, "masks": kept_map(base, KEPT), "base again": None}


def expected(
    base: Checkpoint, maps: Mapping[str, RoutingMap | None], folder: Path
) -> dict[str, list[tuple[float, bool]]]:
    asked = requests(*PAIRS)
    engine = TransformersEngine(base.folder, dtype="float32")
    found = {}
    for name, routing_map in maps.items():
        if routing_map is None:
            found[name] = engine._scorer.loglikelihood(asked)
        elif name == "merged":
            build(base, routing_map, folder)
            merged = TransformersEngine(folder, dtype="float32")
            found[name] = merged._scorer.loglikelihood(asked)
        elif name == "substituted":
            with constant(engine.model, substituted_map(base, KEPT)[1]):
                found[name] = engine._scorer.loglikelihood(asked)
        elif name == "mapped" or (name == "one-hot" and base.layout.mappable):
            engine.apply(routing_map)
            found[name] = engine._scorer.loglikelihood(asked)
            engine.apply(None)
        else:
            kept = {one.layer: one.router_selection.kept or () for one in routing_map.layers}
            with without(engine.model, EXPERTS, kept):
                found[name] = engine._scorer.loglikelihood(asked)
    return found


@pytest.mark.parametrize(
    "case", [pytest.param(c, marks=() if c in ALWAYS else pytest.mark.slow) for c in CASES]
)
def test_candidates_are_those_of_transformers(case: str, tmp_path: Path, matrix: Matrix) -> None:
    family, more = CASES[case]
    serving, folder = serving_of(family), tmp_path / "model"
    serving = serving.live or serving
    make_family(family, folder, **(serving.model | more))
    for one in {folder, as_transformers(folder)}:
        write_tokenizer(one, 60)
    if family.startswith("qwen3_5"):
        add_words(folder)
    base = Checkpoint.open(folder)
    maps, dtype = maps_of(base), serving.arguments.get("dtype", "float32")
    if refusal := serving.refusal("live"):
        with pytest.raises(RuntimeError, match=re.escape(refusal)):
            probe_live(folder, PAIRS, [None], tmp_path, dtype=dtype)
        matrix.add(family, "live", "TP1", f"vLLM: {refusal}")
        return
    answers = probe_live(folder, PAIRS, list(maps.values()), tmp_path, dtype=dtype)
    read = Checkpoint.open(as_transformers(folder))
    wanted = expected(read, maps_of(read), tmp_path / "merged")
    worst, limit = 0.0, LIMIT if dtype == "float32" else 3 * serving.limit  # of 3 tokens
    for name, found in zip(maps, answers, strict=True):
        apart = np.abs(np.array(found) - [value for value, _ in wanted[name]]).max()
        print(f"{case}, {name}: {apart:.1e}")
        worst = max(worst, float(apart))
        assert apart < limit, name
        if maps[name] is not None and dtype == "float32":
            assert np.abs(np.array(found) - answers[0]).max() > 20 * limit, name
    assert answers[0] == answers[-1]
    if case in LAYOUTS:
        matrix.add(family, "live", "TP1", worst)


@pytest.mark.slow
@pytest.mark.parametrize("family", ALWAYS)
def test_candidates_of_a_recorded_model(family: str, tmp_path: Path) -> None:
    """torch.compile keeps what it saw: only the content of tensors may change with the map."""
    folder = make_family(family, tmp_path / "model")
    write_tokenizer(folder, 60)
    base = Checkpoint.open(folder)
    maps = maps_of(base)
    if family == "deepseek_v3":
        maps = {"one active": kept_map(base, KEPT, top_k=lambda _: 1), **maps}
    maps.pop("substituted")  # refused: its vectors are not recorded
    eager, recorded = (
        probe_live(folder, PAIRS, list(maps.values()), tmp_path, dtype="float32", enforce_eager=way)
        for way in (True, False)
    )
    for name, found, wanted in zip(maps, recorded, eager, strict=True):
        assert np.abs(np.array(found) - wanted).max() < LIMIT, name


@pytest.mark.slow
@pytest.mark.skipif(not torch.cpu._is_amx_tile_supported(), reason="vLLM's kernels need AMX")
@pytest.mark.parametrize("name", SERVED)
def test_quantised_experts_are_dropped_as_they_are(name: str, tmp_path: Path) -> None:
    """Against transformers with the dequantised weights; vLLM computes in bfloat16."""
    sizes = {"hidden": 128, "intermediate": 128, "heads": 4, "kv_heads": 4, "vocab": 60}
    whole = make_tiny_mixtral(tmp_path / "whole", dtype="bfloat16", **sizes)
    write_tokenizer(whole, 60)
    folder = quantise(whole, tmp_path / "model", FORMATS[name], config_of(name))
    readable = dequantise(folder, tmp_path / "readable", name)
    write_tokenizer(readable, 60)
    base = Checkpoint.open(folder)
    maps = {"base": None, "masks": kept_map(base, KEPT)}
    maps["one-hot"] = kept_map(base, KEPT, router=lambda _: "mapped")
    answers = probe_live(folder, PAIRS, list(maps.values()), tmp_path, dtype="bfloat16")
    wanted = expected(Checkpoint.open(readable), maps, tmp_path / "merged")
    for kind, found in zip(maps, answers, strict=True):
        apart = np.abs(np.array(found) - [value for value, _ in wanted[kind]]).max()
        print(f"{name}, {kind}: {apart:.1e}")
        assert apart < 0.3, kind
    assert np.abs(np.array(answers[1]) - answers[0]).max() > 0.5
    assert answers[1] == answers[2]
