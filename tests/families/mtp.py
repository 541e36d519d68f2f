"""MTP (draft) layers for tiny models, under the names that the hub has.

transformers neither makes nor loads them. Their blocks are those of the model's last layer with
numbers of their own.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from tests.families.models import make_family
from tests.families.quantised import tensors_of, write
from vllm_moe_prune.checkpoint import Checkpoint
from vllm_moe_prune.layouts import LAYOUTS

_JOINED = {"enorm": "norm", "hnorm": "norm", "eh_proj": "joint"}
_NUMBERED = {
    **_JOINED,
    "shared_head.norm": "norm",
    "embed_tokens": "tokens",
    "shared_head.head": "tokens",
}
_BESIDE = {
    "mtp.fc": "joint",
    "mtp.norm": "norm",
    "mtp.pre_fc_norm_hidden": "norm",
    "mtp.pre_fc_norm_embedding": "norm",
}
# family -> what begins the names of the draft layer, and what else there is of it
MTP: Mapping[str, tuple[str, Mapping[str, str]]] = {
    "deepseek_v3": ("model.layers.3.", _NUMBERED),
    "glm4_moe": ("model.layers.3.", _NUMBERED),
    "qwen3_next": ("mtp.layers.0.", _BESIDE),
    "ernie4_5_moe": ("model.mtp_block.0.", {"model.mtp_linear_proj.0": "joint"}),
}
# Ernie's draft layer is a dense one
WITH_EXPERTS = tuple(family for family in MTP if family != "ernie4_5_moe")
# Built byte by byte in other tests, as they were released; here for those that serve.
MORE: Mapping[str, tuple[str, Mapping[str, str]]] = {
    "glm4_moe_lite": ("model.layers.3.", _NUMBERED),
    "deepseek_v32": ("model.layers.3.", _NUMBERED),
    "glm_moe_dsa": ("model.layers.3.", _NUMBERED),
    "qwen3_5_moe_text": ("mtp.layers.0.", _BESIDE),
    "qwen3_5_moe": ("mtp.layers.0.", _BESIDE),
    "hy_v3": ("model.layers.3.", {**_JOINED, "final_layernorm": "norm"}),
}


def add_mtp(family: str, folder: Path) -> list[str]:
    """Give a tiny model a draft layer and return the names of its tensors."""
    generator = torch.Generator().manual_seed(5)
    prefix, more = {**MTP, **MORE}[family]
    layer = Checkpoint.open(folder).layout.layer
    tensors = tensors_of(folder)
    like = layer.format(layer=0 if family == "ernie4_5_moe" else 2)
    own = {prefix + n.removeprefix(like): t for n, t in tensors.items() if n.startswith(like)}
    config = json.loads((folder / "config.json").read_text())
    text = config[LAYOUTS[family].section] if LAYOUTS[family].section else config
    hidden = text["hidden_size"]
    shapes = {"norm": (hidden,), "joint": (hidden, 2 * hidden)}
    shapes["tokens"] = (text["vocab_size"], hidden)
    for name, kind in more.items():
        own[f"{'' if 'mtp' in name else prefix}{name}.weight"] = torch.empty(shapes[kind])
    own = {n: torch.randn(t.shape, generator=generator) / hidden**0.5 for n, t in own.items()}
    text[LAYOUTS[family].mtp_key] = 1
    write(folder, tensors | own, config, shards=2)
    (folder / "model.safetensors").unlink()
    return list(own)


def make_with_mtp(family: str, folder: Path, **more: Any) -> Path:
    """Write a random checkpoint of a family with a draft layer into ``folder`` and return it."""
    make_family(family, folder, **more)
    add_mtp(family, folder)
    return folder
