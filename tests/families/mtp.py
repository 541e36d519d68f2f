"""MTP (draft) layers for tiny models, under the names that the hub has.

transformers neither makes nor loads them. Their blocks are those of the model's last layer with
numbers of their own.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import torch

from tests.families.models import make_family
from tests.families.quantised import tensors_of, write

_NUMBERED = {
    "enorm": "norm",
    "hnorm": "norm",
    "shared_head.norm": "norm",
    "eh_proj": "joint",
    "embed_tokens": "tokens",
    "shared_head.head": "tokens",
}
# family -> what begins the names of the draft layer, and what else there is of it
MTP: Mapping[str, tuple[str, Mapping[str, str]]] = {
    "deepseek_v3": ("model.layers.3.", _NUMBERED),
    "glm4_moe": ("model.layers.3.", _NUMBERED),
    "qwen3_next": ("mtp.layers.0.", {"mtp.fc": "joint", "mtp.norm": "norm"}),
    "ernie4_5_moe": ("model.mtp_block.0.", {"model.mtp_linear_proj.0": "joint"}),
}
# Ernie's draft layer is a dense one
WITH_EXPERTS = tuple(family for family in MTP if family != "ernie4_5_moe")


def add_mtp(family: str, folder: Path) -> list[str]:
    """Give a tiny model a draft layer and return the names of its tensors."""
    generator = torch.Generator().manual_seed(5)
    prefix, more = MTP[family]
    tensors = tensors_of(folder)
    like = "model.layers.0." if family == "ernie4_5_moe" else "model.layers.2."
    own = {prefix + n.removeprefix(like): t for n, t in tensors.items() if n.startswith(like)}
    config = json.loads((folder / "config.json").read_text())
    hidden = config["hidden_size"]
    shapes = {"norm": (hidden,), "joint": (hidden, 2 * hidden)}
    shapes["tokens"] = (config["vocab_size"], hidden)
    for name, kind in more.items():
        own[f"{'' if 'mtp' in name else prefix}{name}.weight"] = torch.empty(shapes[kind])
    own = {n: torch.randn(t.shape, generator=generator) / hidden**0.5 for n, t in own.items()}
    write(folder, tensors | own, {**config, "num_nextn_predict_layers": 1}, shards=2)
    (folder / "model.safetensors").unlink()
    return list(own)


def make_with_mtp(family: str, folder: Path) -> Path:
    """Write a random checkpoint of a family with a draft layer into ``folder`` and return it."""
    make_family(family, folder)
    add_mtp(family, folder)
    return folder
