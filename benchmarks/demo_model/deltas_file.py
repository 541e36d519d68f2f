"""Writing ``deltas.safetensors``; ``offline/demo/deltas.py`` describes the file and reads it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

from offline.demo.deltas import FORMAT
from vllm_moe_prune.provenance import let_others_read

_PROJECTIONS = ("gate", "up", "down")


def quantise(factors: dict[str, Tensor]) -> dict[str, Tensor]:
    """int8 vectors and their scales from float factors (names and shapes as in the file)."""
    packed: dict[str, Tensor] = {}
    for name in _PROJECTIONS:
        a, b = factors[f"{name}_a"].float(), factors[f"{name}_b"].float()
        a_size = a.abs().amax(dim=-1).clamp(min=1e-12)  # [experts, layers, rank]
        b_size = b.abs().amax(dim=-2).clamp(min=1e-12)
        packed[f"{name}_a"] = (a / a_size[..., None] * 127).round().to(torch.int8)
        packed[f"{name}_b"] = (b / b_size[..., None, :] * 127).round().to(torch.int8)
        packed[f"{name}_scale"] = a_size * b_size / (127 * 127)
    return packed


def save_deltas(
    path: Path,
    neurons: Tensor,
    routers: Tensor,
    factors: dict[str, Tensor],
    metadata: dict[str, Any],
    ffn: int,
) -> None:
    """Write the file. neurons: indices [experts, layers, kept]; routers and factors in float."""
    mask = torch.zeros(*neurons.shape[:2], ffn, dtype=torch.uint8)
    mask.scatter_(2, neurons, 1)
    tensors = {
        "neurons": torch.from_numpy(np.packbits(mask.numpy(), axis=-1)),
        "routers": routers.to(torch.bfloat16),
        **quantise(factors),
    }
    header = {"format": FORMAT, "made": json.dumps(metadata, sort_keys=True)}
    partial = path.with_suffix(".partial")
    save_file({name: t.contiguous() for name, t in tensors.items()}, partial, header)
    let_others_read(partial)
    partial.replace(path)
