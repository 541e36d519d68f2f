"""Which device to compute on, and in which dtype."""

from __future__ import annotations

from typing import Literal

from vllm_moe_prune.errors import PruneError


def pick_device(name: str) -> str:
    """Return a torch device: ``auto`` takes a GPU where there is one.

    :raises PruneError: if torch knows no such device
    """
    import torch

    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        return str(torch.device(name))
    except RuntimeError:
        raise PruneError(f"unknown device {name!r}", hint="auto, cpu, cuda, cuda:1, ...") from None


def batch_tokens(device: str) -> int:
    """Return how many tokens go through a model at once where that is free to choose.

    :param device: as `pick_device` gives it
    """
    return 4096 if device == "cpu" else 8192


def pick_dtype(name: DType, device: str) -> DType:
    """Return the dtype to compute in: ``auto`` becomes float32 on a CPU that is slow in bfloat16.

    On a CPU without instructions for bfloat16 (AVX2 only) one thread made 71 GFLOP/s in float32 and
    9.5 in bfloat16. Elsewhere ``auto`` stays: it is the dtype that is stored.

    :param device: as `pick_device` gives it
    """
    import torch

    if name != "auto" or not device.startswith("cpu"):
        return name
    has_instructions = (torch.cpu._is_avx512_bf16_supported, torch.cpu._is_amx_tile_supported)
    return "auto" if any(has() for has in has_instructions) else "float32"


DType = Literal["auto", "bfloat16", "float32"]
