"""A Mixtral with random weights on disk, where `dummy_model` does not do: loading and memory."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path

from benchmarks.dummy_model import Shape, write_model
from vllm_moe_prune.checkpoint import INDEX_FILE
from vllm_moe_prune.layouts import LAYOUTS

_DEVIATION = 0.02  # as models are initialised; activations stay finite


def write_random_model(folder: Path, shape: Shape, seed: int = 0) -> Path:
    """Write config, tokenizer and bfloat16 weights, one shard a layer, and return ``folder``.

    What is written is on the disk when this returns, so a server that starts next does not wait
    for it.
    """
    import torch
    from safetensors.torch import save_file

    write_model(folder, shape)
    generator = torch.Generator().manual_seed(seed)
    shards = list(_shards(shape))
    weight_map: dict[str, str] = {}
    for number, sizes in enumerate(shards, start=1):
        file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        tensors = {
            name: torch.ones(size, dtype=torch.bfloat16)
            if len(size) == 1
            else (torch.randn(size, generator=generator) * _DEVIATION).bfloat16()
            for name, size in sizes.items()
        }
        save_file(tensors, folder / file, {"format": "pt"})
        weight_map.update(dict.fromkeys(sizes, file))
    (folder / INDEX_FILE).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    subprocess.run(["sync"], check=True)
    return folder


def _shards(shape: Shape) -> Iterator[Mapping[str, tuple[int, ...]]]:
    layout = LAYOUTS["mixtral"]
    hidden, intermediate = shape.hidden, shape.intermediate
    values = hidden // shape.heads * shape.kv_heads
    yield {
        "model.embed_tokens.weight": (shape.vocab, hidden),
        "lm_head.weight": (shape.vocab, hidden),
        "model.norm.weight": (hidden,),
    }
    for layer in range(shape.layers):
        prefix = f"model.layers.{layer}"
        tensors: dict[str, tuple[int, ...]] = {
            f"{prefix}.input_layernorm.weight": (hidden,),
            f"{prefix}.post_attention_layernorm.weight": (hidden,),
            layout.router_name(layer): (shape.experts, hidden),
        }
        for projection, rows in (("q", hidden), ("k", values), ("v", values), ("o", hidden)):
            tensors[f"{prefix}.self_attn.{projection}_proj.weight"] = (rows, hidden)
        for expert in range(shape.experts):
            for projection in layout.projections:
                down = projection == "w2"
                size = (hidden, intermediate) if down else (intermediate, hidden)
                tensors[layout.expert_name(layer, expert, projection)] = size
        yield tensors
