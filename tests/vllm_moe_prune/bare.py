"""Checkpoints and maps without a model around them: tensor names, random numbers, strategies."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import strategies as st
from numpy.typing import NDArray
from safetensors.numpy import save_file

from vllm_moe_prune.checkpoint import INDEX_FILE
from vllm_moe_prune.fingerprint import BaseFingerprint
from vllm_moe_prune.layouts import LAYOUTS
from vllm_moe_prune.provenance import Provenance
from vllm_moe_prune.rewrite import TensorInfo
from vllm_moe_prune.routing_map import RoutingMap

MIXTRAL = LAYOUTS["mixtral"]
BASE = BaseFingerprint(config="sha256:c", index="sha256:i", routers="sha256:r", name="tiny")
HIDDEN, INTERMEDIATE, VOCABULARY = 4, 6, 10


def shapes(layers: int, experts: int) -> dict[str, tuple[int, ...]]:
    """Return name -> shape of a Mixtral without most of its attention."""
    found: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (VOCABULARY, HIDDEN)}
    for layer in range(layers):
        found[f"model.layers.{layer}.self_attn.q_proj.weight"] = (HIDDEN, HIDDEN)
        found[MIXTRAL.router_name(layer)] = (experts, HIDDEN)
        for expert in range(experts):
            for projection in MIXTRAL.projections:
                name = MIXTRAL.expert_name(layer, expert, projection)
                down = projection == "w2"
                found[name] = (HIDDEN, INTERMEDIATE) if down else (INTERMEDIATE, HIDDEN)
    return found


def infos(layers: int, experts: int, dtype: str = "F32") -> dict[str, TensorInfo]:
    """Return the index of `shapes`."""
    return {name: TensorInfo(name, dtype, s) for name, s in shapes(layers, experts).items()}


def write_bare(
    folder: Path, *, layers: int = 2, experts: int = 4, shards: int = 1, seed: int = 0
) -> dict[str, NDArray[np.float32]]:
    """Write a float32 checkpoint with config.json into ``folder`` and return its tensors."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    tensors = {n: rng.normal(size=s).astype(np.float32) for n, s in shapes(layers, experts).items()}
    config = {"model_type": "mixtral", "num_local_experts": experts, "num_experts_per_tok": 1}
    (folder / "config.json").write_text(json.dumps(config))
    if shards == 1:
        save_file(tensors, folder / "model.safetensors")
        return tensors
    names = list(tensors)
    weight_map = {}
    for shard in range(shards):
        file = f"model-{shard + 1:05d}-of-{shards:05d}.safetensors"
        part = names[shard::shards]
        save_file({name: tensors[name] for name in part}, folder / file)
        weight_map.update(dict.fromkeys(part, file))
    (folder / INDEX_FILE).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return tensors


def layer_fields(layer: int = 0, **changes: Any) -> dict[str, Any]:
    """Return the fields of a valid one-hot layer that keeps experts 1, 3 and 6."""
    fields = {
        "layer": layer,
        "num_experts": 8,
        "num_kept": 3,
        "top_k": 2,
        "experts": {"kept": [1, 3, 6]},
    }
    return fields | changes


def map_fields(*layers: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """Return the fields of a routing map with these layers (one valid layer if none)."""
    fields: dict[str, Any] = {
        "model_type": "mixtral",
        "base": BASE.model_dump(),
        "layers": list(layers) or [layer_fields()],
        "provenance": Provenance(method="by hand").model_dump(mode="json"),
    }
    return fields | changes


def map_of(*layers: dict[str, Any], matrices: Any = None, **changes: Any) -> RoutingMap:
    """Build a routing map of these layers."""
    return RoutingMap.build(matrices=matrices, **map_fields(*layers, **changes))


MERGED = layer_fields(
    num_experts=4,
    num_kept=2,
    top_k=1,
    experts={"matrix": "em"},
    router="mapped",
    router_rows={"matrix": "rm"},
)


def two(**changes: Any) -> dict[str, NDArray[Any]]:
    """Return the two matrices of ``MERGED``; a change to None leaves one out."""
    matrices = {"em": np.full((2, 4), 0.25), "rm": np.eye(4)[:2]}
    return {k: v for k, v in (matrices | changes).items() if v is not None}


@st.composite
def routing_maps(
    draw: st.DrawFn, *, with_matrices: bool = True, layers: int | None = None, experts: int = 0
) -> RoutingMap:
    """Draw a map of 1 to 3 layers: any E', top-k, order of experts, router and matrices."""
    count = layers or draw(st.integers(1, 3))
    matrices: dict[str, NDArray[np.float32]] = {}
    drawn = [_layer(draw, n, experts, with_matrices, matrices) for n in range(count)]
    return map_of(*drawn, matrices=matrices)


def _layer(
    draw: st.DrawFn, number: int, experts: int, with_matrices: bool, matrices: dict[str, Any]
) -> dict[str, Any]:
    total = experts or draw(st.integers(1, 6))
    kept = draw(st.permutations(range(total)).map(list))[: draw(st.integers(1, total))]
    fields: dict[str, Any] = {
        "layer": number,
        "num_experts": total,
        "num_kept": len(kept),
        "top_k": draw(st.integers(1, len(kept))),
        "experts": {"kept": kept},
        "router": draw(st.sampled_from(["sliced", "mapped"])),
    }
    if not with_matrices:
        return fields
    rng = np.random.default_rng(draw(st.integers(0, 2**16)))
    for field, named in (("experts", draw(st.booleans())), ("router_rows", draw(st.booleans()))):
        if named:
            name = f"layers.{number}.{field}"
            sparse = rng.random((len(kept), total)) < 0.7  # some experts are in no new one
            matrices[name] = (rng.normal(size=(len(kept), total)) * sparse).astype(np.float32)
            fields[field] = {"matrix": name}
    if fields["router"] == "sliced":  # gate rows are chosen by id, whatever the experts are
        fields["router_rows"] = {"kept": kept}
        matrices.pop(f"layers.{number}.router_rows", None)
    return fields
