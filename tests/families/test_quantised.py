"""Quantised checkpoints: every part of an expert moves with it, and no such expert is merged."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from offline.build.build import build, plan_build
from offline.compress.compress import compress
from offline.compress.prepared import Prepared
from offline.compress.recipe.reading import recipe_of
from offline.finetune.finetune import check_fits
from offline.finetune.settings import FinetuneSettings
from offline.finetune.where import Where
from tests.families.models import make_family
from tests.families.quantised import FORMATS, quantise, tensors_of, write
from tests.families.test_build import KEPT, sliced_map
from tests.sample_files import write_task
from tests.sample_maps import map_of, uniform_map
from tests.sample_runs import Listener
from tests.tiny import make_tiny_mixtral
from tests.vllm_moe_prune.bare import MIXTRAL, infos, layer_fields, routing_maps
from tests.vllm_moe_prune.bare import map_of as bare_map
from vllm_moe_prune.checkpoint import Checkpoint
from vllm_moe_prune.errors import PruneError
from vllm_moe_prune.layer_map import LayerMap, Selection
from vllm_moe_prune.rewrite import Copy, Drop, TensorInfo, rewrite
from vllm_moe_prune.roles import PARTS
from vllm_moe_prune.routing_map import RoutingMap

CONFIG = {"quant_method": "anything", "ignore": ["lm_head"]}
IDS = [(6, 1, 3, 4), (0, 2, 7, 5)]  # kept, in this order


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base") / "b"
    make_tiny_mixtral(folder, dtype="bfloat16", tie=True, intermediate=128)
    tensors = tensors_of(folder)
    for layer in range(2):  # routers of large models are often wider than their weights
        name = MIXTRAL.router_name(layer)
        tensors[name] = tensors[name].float()
    write(folder, tensors, json.loads((folder / "config.json").read_text()))
    return folder


def merged_map(base: Path) -> RoutingMap:
    matrix = np.eye(8, dtype=np.float32)[[6, 1, 3, 4]]
    matrix[0, 2] = 0.5
    layers = [
        LayerMap(
            layer=layer,
            num_experts=8,
            num_kept=4,
            top_k=2,
            experts=Selection(matrix="m") if layer == 1 else Selection(kept=ids),
            router_rows=Selection(kept=ids),
        )
        for layer, ids in enumerate(IDS)
    ]
    return map_of(base, layers, m=matrix)


def modules(checkpoint: Checkpoint) -> dict[tuple[int, int], dict[str, tuple[Any, ...]]]:
    """Return (layer, expert) -> what follows its number in a name -> dtype, shape and bytes."""
    found: dict[tuple[int, int], dict[str, tuple[Any, ...]]] = {}
    for name, info in checkpoint.tensors.items():
        if ".experts." in name:
            layer, expert = int(name.split(".")[2]), int(name.split(".experts.")[1].split(".")[0])
            tail = name.split(f".experts.{expert}.")[1]
            found.setdefault((layer, expert), {})[tail] = (
                info.dtype,
                info.shape,
                checkpoint.raw(name),
            )
    return found


@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize("name", FORMATS)
def test_kept_experts_are_the_bases_byte_for_byte(
    name: str, shards: int, plain: Path, tmp_path: Path
) -> None:
    base = Checkpoint.open(quantise(plain, tmp_path / "q", FORMATS[name], CONFIG, shards=shards))
    build(base, uniform_map(base.folder, IDS), tmp_path / "out")
    out = Checkpoint.open(tmp_path / "out")
    before, after = modules(base), modules(out)
    num_parts = len(FORMATS[name](torch.ones(64, 64)))
    assert {len(parts) for parts in before.values()} == {3 * num_parts}
    for layer, ids in enumerate(IDS):
        for new, old in enumerate(ids):
            assert after.pop((layer, new)) == before[layer, old]
    assert not after
    for layer, ids in enumerate(IDS):
        gate = MIXTRAL.router_name(layer)
        assert out.tensors[gate].dtype == "F32"
        assert torch.equal(out.tensor(gate), base.tensor(gate)[list(ids)])
    rest = [n for n in base.tensors if ".block_sparse_moe." not in n]
    assert rest == [n for n in out.tensors if ".block_sparse_moe." not in n]
    assert "lm_head.weight" not in rest
    assert all(base.raw(n) == out.raw(n) for n in rest)
    assert out.config["quantization_config"] == CONFIG
    assert (out.config["num_local_experts"], out.config["tie_word_embeddings"]) == (4, True)


@pytest.mark.parametrize("name", FORMATS)
def test_a_merge_is_refused_before_anything_is_written(
    name: str, plain: Path, tmp_path: Path
) -> None:
    base = Checkpoint.open(quantise(plain, tmp_path / "q", FORMATS[name], CONFIG))
    with pytest.raises(PruneError, match=r"experts\.\d\.w1\.\w+ is quantised .* cannot be merged"):
        build(base, merged_map(base.folder), tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["q"]


def test_a_scale_makes_a_matrix_quantised_whatever_its_dtype(plain: Path, tmp_path: Path) -> None:
    def parts(weight: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"weight": weight, "weight_scale": torch.ones(1)}

    base = Checkpoint.open(quantise(plain, tmp_path / "q", parts, CONFIG))
    with pytest.raises(PruneError, match=r"w1\.weight_scale is quantised \(F32\)"):
        plan_build(base, merged_map(base.folder))


@st.composite
def quantised_bases(draw: st.DrawFn) -> tuple[dict[str, TensorInfo], RoutingMap]:
    """Draw experts with any parts, not the same for all projections, and a map without merges."""
    layers, experts = draw(st.integers(1, 3)), draw(st.integers(1, 6))
    parts = {
        projection: draw(st.sets(st.sampled_from(PARTS), min_size=1))
        for projection in MIXTRAL.projections
    }
    base = {n: i for n, i in infos(layers, experts).items() if ".experts." not in n}
    for layer in range(layers):
        for expert in range(experts):
            for projection, names in parts.items():
                for part in sorted(names):
                    name = MIXTRAL.expert_name(layer, expert, projection, part)
                    base[name] = TensorInfo(
                        name, draw(st.sampled_from(["I32", "U8", "BF16"])), (2,)
                    )
    return base, draw(routing_maps(layers=layers, experts=experts, with_matrices=False))


@settings(max_examples=40, deadline=None)
@given(quantised_bases())
def test_all_parts_of_a_kept_expert_get_its_new_number_and_no_others(
    case: tuple[dict[str, TensorInfo], RoutingMap],
) -> None:
    base, routing_map = case
    operations = list(rewrite(base, routing_map, MIXTRAL))
    dropped = {op.source.name for op in operations if isinstance(op, Drop)}
    moved = {op.source: op.target for op in operations if isinstance(op, Copy)}
    for name, info in base.items():
        if ".experts." not in name:
            assert name not in dropped
            continue
        layer, expert = int(name.split(".")[2]), int(name.split(".experts.")[1].split(".")[0])
        kept = routing_map.by_layer()[layer].experts.kept
        assert kept is not None
        if expert in kept:
            new = name.replace(f".experts.{expert}.", f".experts.{kept.index(expert)}.")
            assert moved[name] == TensorInfo(new, info.dtype, info.shape)
        assert (name in dropped) == (expert not in kept)
    assert len({target.name for target in moved.values()}) == len(moved)


def test_experts_of_one_layer_have_the_same_parts(plain: Path, tmp_path: Path) -> None:
    base = Checkpoint.open(quantise(plain, tmp_path / "q", FORMATS["int8"], CONFIG))
    absent = MIXTRAL.expert_name(1, 5, "w3", "weight_scale")
    tensors = {n: i for n, i in base.tensors.items() if n != absent}
    with pytest.raises(PruneError) as caught:
        list(rewrite(tensors, uniform_map(base.folder, IDS), base.layout))
    assert caught.value.message == f"the checkpoint has no tensor {absent}"


@pytest.mark.parametrize("part", ["qweight", "scales", "weight_packed", "weight_scale_inv"])
def test_a_router_that_cannot_lose_rows_is_refused_by_name(part: str) -> None:
    name = MIXTRAL.router_name(0).removesuffix("weight") + part
    with pytest.raises(PruneError, match=rf"^tensor {name}: a router .* \({part}\) cannot lose"):
        MIXTRAL.classify(name)


@pytest.mark.parametrize("shape", [(8, 1), (8,), (8, 2), (), (1,)])
def test_scales_of_a_routers_rows_go_with_the_rows(shape: tuple[int, ...]) -> None:
    name = MIXTRAL.router_name(0).removesuffix("weight") + "weight_scale"
    base = infos(1, 8) | {name: TensorInfo(name, "F32", shape)}
    kept = bare_map(layer_fields(num_experts=8, num_kept=3, experts={"kept": [4, 0, 7]}))
    made = {op.target.name: op for op in rewrite(base, kept, MIXTRAL) if not isinstance(op, Drop)}
    if len(shape) == 0 or shape == (1,):  # of the whole matrix
        assert made[name] == Copy(name, base[name])
    else:
        assert made[name].target.shape == (3, *shape[1:])
        assert getattr(made[name], "rows", None) == (4, 0, 7)
    with pytest.raises(PruneError, match=rf"^tensor {name} has 2 rows"):
        list(rewrite(base | {name: TensorInfo(name, "F32", (2, 3))}, kept, MIXTRAL))


def test_mxfp4_blocks_of_stacked_experts_are_sliced_and_not_mixed(tmp_path: Path) -> None:
    folder = make_family("gpt_oss", tmp_path / "base")
    tensors = tensors_of(folder)
    for name in [n for n in tensors if n.endswith(("gate_up_proj", "down_proj"))]:
        experts, _, rows = tensors.pop(name).shape
        tensors[name + "_blocks"] = torch.randint(255, (experts, rows, 1, 16)).byte()
        tensors[name + "_scales"] = torch.randint(255, (experts, rows, 1)).byte()
    config = json.loads((folder / "config.json").read_text())
    write(folder, tensors, {**config, "quantization_config": {"quant_method": "mxfp4"}})
    base = Checkpoint.open(folder)
    build(base, sliced_map(base), tmp_path / "out")
    out = Checkpoint.open(tmp_path / "out")
    stacked = [n for n in base.tensors if ".experts." in n]
    assert len(stacked) == 3 * 6
    for name in stacked:
        kept = KEPT[int(name.split(".")[2])]
        assert torch.equal(out.tensor(name), base.tensor(name)[list(kept)])
    matrix = np.full((4, 8), 0.25, np.float32)
    with pytest.raises(PruneError, match=r"_(blocks|scales) is quantised \(U8\)"):
        plan_build(base, sliced_map(base, matrix="w", matrices={"w": matrix}))
    without = {n: i for n, i in base.tensors.items() if n != stacked[0]}
    with pytest.raises(PruneError, match=f"^the checkpoint has no tensor {stacked[0]}$"):
        list(rewrite(without, sliced_map(base), base.layout))


def test_whoever_trains_or_merges_refuses_quantised_ones(plain: Path, tmp_path: Path) -> None:
    """Also before a model's size is estimated, for which a packed shape means nothing."""
    folder = quantise(plain, tmp_path / "q", FORMATS["gptq"], {**CONFIG, "quant_method": "gptq"})
    complaint = r"is quantised \(gptq\): what is trained needs the original weights"
    with pytest.raises(PruneError, match=complaint):
        Prepared.of(recipe_of({"model": folder, "keep": 4, "method": "lottery"}))
    with pytest.raises(PruneError, match=complaint):
        settings = FinetuneSettings(trainable="router")
        check_fits(Checkpoint.open(folder), settings, length=8, where=Where(device="cpu"))
    merged = r"are quantised \(gptq; .*\.(qweight|qzeros|scales|g_idx|bias) is .*cannot be merged"
    with pytest.raises(PruneError, match=merged):
        Prepared.of(recipe_of({"model": folder, "keep": 4}))


def test_what_is_searched_dequantised_is_built_from_the_quantised_tensors(
    plain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VMPRUNE_CACHE", str(tmp_path / "cache"))
    base = quantise(plain, tmp_path / "q", FORMATS["int4-asymmetric"], CONFIG)
    settings = {"model": base, "keep": 4, "method": "frequency", "task": str(write_task(tmp_path))}
    items = {"search_items": 4, "test_items": 4, "compare": "none"}
    recipe = recipe_of(settings | items | {"device": "cpu", "dtype": "float32"})
    result = compress(recipe, tmp_path / "out", reporter=Listener())
    assert result.form == "plain"
    out, whole = Checkpoint.open(tmp_path / "out"), Checkpoint.open(base)
    kept = RoutingMap.load(tmp_path / "out").by_layer()[1].experts.kept
    assert kept is not None
    for new, old in enumerate(kept):
        name = whole.layout.expert_name(1, old, "w1", "")
        parts = [part for part in whole.stored if part.startswith(name)]
        assert len(parts) == 5
        for part in parts:
            target = part.replace(name, whole.layout.expert_name(1, new, "w1", ""))
            assert out.raw(target) == whole.raw(part)


def test_a_map_of_the_original_applies_to_its_quantised_copy(plain: Path, tmp_path: Path) -> None:
    base = Checkpoint.open(quantise(plain, tmp_path / "q", FORMATS["awq"], CONFIG))
    with pytest.raises(PruneError, match="made for another base"):
        plan_build(base, uniform_map(plain, IDS))
    plan = build(base, uniform_map(plain, IDS), tmp_path / "out", allow_other=True)
    assert plan.dropped == 2 * 4 * 3 * 3
