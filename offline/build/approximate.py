"""A substituted model in the form that vLLM serves without our plugin, from version 0.33 on.

vLLM's own name for such a model is `approximate_experts`: config.json says which experts of a layer
are constant, the checkpoint has a vector for each of them in place of its weights, and the others
keep their numbers. What vLLM reads is in its fused_moe/expert_substitution.py.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from offline.build.companions import copy_companions
from offline.runs.output import check_output, staged
from vllm_moe_prune.checkpoint import INDEX_FILE, Checkpoint
from vllm_moe_prune.errors import PruneError
from vllm_moe_prune.layer_map import LayerMap
from vllm_moe_prune.reading import read_object
from vllm_moe_prune.rewrite import COMBINABLE, Copy, Drop, Operation
from vllm_moe_prune.roles import WEIGHT
from vllm_moe_prune.routing_map import RoutingMap
from vllm_moe_prune.writer import DEFAULT_SHARD_BYTES, Progress, write_shards

if TYPE_CHECKING:
    import torch

KEY = "approximate_experts"
_VECTORS = "model-constants.safetensors"
_HINT = "build the map instead (vmprune build), and serve that with --load-format pruned_moe"


def write_approximate(
    base: Checkpoint,
    routing_map: RoutingMap,
    out: Path,
    *,
    force: bool = False,
    allow_other: bool = False,
    max_shard_bytes: int = DEFAULT_SHARD_BYTES,
    progress: Progress | None = None,
) -> int:
    """Write the checkpoint: kept experts under their own numbers, and a vector for each other.

    :returns: bytes of its tensors, without the vectors
    :raises PruneError: if vLLM's form cannot say what the map does, the map is for another base,
        ``out`` exists, or the disk is full
    """
    check_output(out, force=force, inputs=(base.folder,))
    routing_map.check_base(base.fingerprint(), base.expert_counts(), allow_other=allow_other)
    for layer in routing_map.layers:
        _check_layer(layer, base)
    if not routing_map.substitutes:
        raise PruneError("this routing map substitutes no experts", hint=_HINT)
    constant = {layer.layer: layer.constant_ids for layer in routing_map.layers}
    operations = tuple(_operations(base, constant))
    with staged(out, force=force) as partial:
        written = write_shards(
            base, operations, partial, max_shard_bytes=max_shard_bytes, progress=progress
        )
        _add_vectors(base, routing_map, partial)
        copy_companions(base.folder, partial)
        named = {str(layer): list(ids) for layer, ids in constant.items() if ids}
        config = json.dumps({**base.config, KEY: named}, indent=2)
        (partial / "config.json").write_text(config + "\n")
        (partial / "README.md").write_text(_card(base.name, routing_map))
    return written.num_bytes


def _operations(base: Checkpoint, constant: dict[int, tuple[int, ...]]) -> list[Operation]:
    """Copy all but the weights of experts that vectors stand for."""
    found: list[Operation] = []
    for info in base.tensors.values():
        role = base.layout.classify(info.name)
        expert = None if role is None else role.expert
        dropped = role is not None and expert is not None and expert in constant[role.layer]
        found.append(Drop(info) if dropped else Copy(info.name, info))
    return found


def _add_vectors(base: Checkpoint, routing_map: RoutingMap, folder: Path) -> None:
    """Write the vectors into a file of their own, and name it in the index."""
    import torch
    from safetensors.torch import save_file

    vectors: dict[str, torch.Tensor] = {}
    for layer in routing_map.layers:
        if layer.substituted is None:
            continue
        rows = torch.from_numpy(routing_map.vectors(layer)).to(_dtype(base, layer.layer))
        names = [_vector_name(base, layer.layer, expert) for expert in layer.constant_ids]
        vectors |= {name: row.clone() for name, row in zip(names, rows, strict=True)}
    save_file(vectors, folder / _VECTORS, {"format": "pt"})
    index = read_object(folder / INDEX_FILE)
    index["metadata"]["total_size"] += sum(one.nbytes for one in vectors.values())
    index["weight_map"] |= dict.fromkeys(sorted(vectors), _VECTORS)
    (folder / INDEX_FILE).write_text(json.dumps(index, indent=2) + "\n")


def _vector_name(base: Checkpoint, layer: int, expert: int) -> str:
    template = base.layout.form(layer).expert
    assert template is not None
    own = template.partition("{expert}")[0] + str(expert)
    return f"{base.layout.layer.format(layer=layer)}{own}.approx_value"


def _dtype(base: Checkpoint, layer: int) -> torch.dtype:
    """Return torch's dtype of a layer's experts, in which vLLM keeps the vectors as well."""
    import torch

    name = base.layout.expert_name(layer, 0, base.layout.form(layer).projections[0])
    kinds = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}
    found: torch.dtype = getattr(torch, kinds[base.tensors[name].dtype])
    return found


def _check_layer(layer: LayerMap, base: Checkpoint) -> None:
    """Refuse what vLLM's form cannot say.

    :raises PruneError: naming the layer
    """
    own, form = base.layout.top_k(base.config), base.layout.form(layer.layer)
    every = tuple(range(layer.num_experts))
    why = None
    if layer.router == "mapped" or layer.router_rows is not None or layer.experts.kept is None:
        why = "merges experts or mixes their scores"
    elif tuple(sorted((*layer.experts.kept, *layer.constant_ids))) != every:
        why = "drops experts: each must be kept or substituted"
    elif layer.top_k != own:
        why = f"activates {layer.top_k} experts, which must be the model's {own}"
    elif form.expert is None:
        why = "has all experts in one tensor, of which vLLM takes none out"
    elif any(map(_is_quantised, _experts_of(base, layer.layer))):
        why = "has quantised experts"
    if why is not None:
        raise PruneError(f"layer {layer.layer} {why}: vLLM's {KEY} has no such form", hint=_HINT)


def _experts_of(base: Checkpoint, layer: int) -> list[tuple[str, str]]:
    """Return part and dtype of each tensor of a layer's experts."""
    roles = ((info, base.layout.classify(info.name)) for info in base.tensors.values())
    return [
        (role.part, info.dtype)
        for info, role in roles
        if role is not None and role.kind == "expert" and role.layer == layer
    ]


def _is_quantised(part_and_dtype: tuple[str, str]) -> bool:
    part, dtype = part_and_dtype
    return part != WEIGHT or dtype not in COMBINABLE


def _card(base_name: str, routing_map: RoutingMap) -> str:
    made = routing_map.provenance
    return f"""---
base_model: {base_name}
tags: [mixture-of-experts, expert-pruning, vllm-moe-prune]
---

# {base_name}, experts substituted

{routing_map.summary()}

The router chooses among all experts; a constant vector stands for each one that is substituted
(`{KEY}` in config.json). vLLM 0.33 and later serve it:

    vllm serve .

Method `{made.method}`, seed {made.seed}, {made.tool}, {made.created}, map {routing_map.digest()}.
"""
