"""A checkpoint of any family by its layout alone: names and config, tensors of a few numbers."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from vllm_moe_prune.errors import PruneError
from vllm_moe_prune.layout import MoeLayout
from vllm_moe_prune.layouts import LAYOUTS

EXPERTS, TOP_K, SIZE = 8, 2, 32
Parts = dict[str, Tensor]


def write_bare(
    family: str,
    folder: Path,
    *,
    groups: int = 1,
    parts_of: Callable[[Tensor], Parts] | None = None,
    settings: dict[str, Any] | None = None,
) -> Path:
    """Write one layer of a family.

    :param groups: of the router, where it has any
    :param parts_of: how the matrix of an expert is quantised
    :param settings: `quantization_config`
    """
    layout = LAYOUTS[family]
    matrix = torch.randn(SIZE, SIZE)
    tensors: Parts = {layout.router_name(0): torch.randn(EXPERTS, SIZE)}
    tensors |= {name.format(layer=0): torch.zeros(EXPERTS) for name in layout.router_rows}
    for expert in range(EXPERTS if layout.expert else 0):
        for one in layout.projections:
            stem = layout.expert_name(0, expert, one, "")
            parts = {"weight": matrix} if parts_of is None else parts_of(matrix)
            tensors |= {stem + part: value.clone() for part, value in parts.items()}
    for name in layout.stacked_names(0):
        if parts_of is None or name.endswith("_bias"):
            tensors[name] = torch.zeros(EXPERTS, SIZE, SIZE)
        elif _has_parts(layout, name):
            for part, value in parts_of(matrix).items():
                stem = name.removesuffix("weight")
                tensors[stem + part] = value.expand(EXPERTS, *value.shape).clone()
        else:
            tensors[name + "_blocks"] = torch.zeros(EXPERTS, SIZE, 1, 16, dtype=torch.uint8)
            tensors[name + "_scales"] = torch.zeros(EXPERTS, SIZE, 1, dtype=torch.uint8)
    text: dict[str, Any] = {
        "hidden_size": SIZE,
        "num_hidden_layers": 1,
        "dtype": "bfloat16",
    }
    if layout.num_groups_key:
        text |= {layout.num_groups_key: groups, "topk_group": 1}
    config: dict[str, Any] = {layout.section: text} if layout.section else text
    config = layout.with_counts(config, EXPERTS, TOP_K)
    more = {"quantization_config": settings} if settings else {}
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(
        json.dumps({"model_type": family, "dtype": "bfloat16", **config, **more})
    )
    (folder / "tokenizer.json").write_text("{}")
    save_file(tensors, folder / "model.safetensors")
    return folder


def _has_parts(layout: MoeLayout, name: str) -> bool:
    """Whether a stacked tensor may be quantised as single experts are, into parts."""
    try:
        return name.endswith(".weight") and layout.classify(name + "_scale") is not None
    except PruneError:
        return False
