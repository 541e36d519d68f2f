"""Where the weights of a model go when it is opened: a device, several GPUs, or the disk."""

from __future__ import annotations

from math import prod
from pathlib import Path
from typing import Any

import torch

from offline.engines.local.offload import device_map
from offline.engines.local.pretrained import Dtype
from vllm_moe_prune.checkpoint import Checkpoint
from vllm_moe_prune.errors import PruneError

_FOR_WEIGHTS = 0.8  # of a GPU's free memory; the rest is for what is computed
_BYTES: dict[Dtype, int | None] = {"auto": None, "bfloat16": 2, "float32": 4}


def placement(folder: Path, dtype: Dtype, device: str, offload: Path | None) -> dict[str, Any]:
    """Return the arguments of transformers' `from_pretrained` that place a model's weights.

    They are read straight to where they belong. A device ``cuda`` without a number is the first
    GPU, or all that are seen where the model is larger than that one.

    :param offload: folder for the decoder layers of a model that is larger than memory
    :raises PruneError: if it is larger than all GPUs together
    """
    if offload is not None:
        return {"device_map": device_map(folder, device), "offload_folder": offload}
    if device == "cuda" and (count := torch.cuda.device_count()) > 1:
        room = [int(torch.cuda.mem_get_info(i)[0] * _FOR_WEIGHTS) for i in range(count)]
        size = _weights(Checkpoint.open(folder), dtype)
        if size > sum(room):
            raise PruneError(
                f"{folder} takes {size / 1024**3:.0f} GiB, and {len(room)} GPUs have "
                f"{sum(room) / 1024**3:.0f} GiB for it",
                hint="--offload of vmprune score, --engine vllm, or --device cpu",
            )
        if size > room[0]:
            return {"device_map": "auto", "max_memory": dict(enumerate(room))}
    return {"device_map": {"": device}}


def _weights(checkpoint: Checkpoint, dtype: Dtype) -> int:
    """Return the bytes of a checkpoint's language model in a dtype."""
    item, prefix = _BYTES[dtype], checkpoint.layout.prefix
    return sum(
        info.num_bytes if item is None else prod(info.shape) * item
        for name, info in checkpoint.tensors.items()
        if name.startswith(prefix)
    )
