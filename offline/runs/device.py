"""Which device to compute on, and in which dtype."""

from __future__ import annotations

import importlib.metadata
import re
from pathlib import Path
from typing import Literal

from vllm_moe_prune.errors import PruneError

_HINT = "auto, cpu, cuda, cuda:1, ..."
_NAMES = re.compile(r"auto|(cpu|cuda|mps|xpu|hpu|npu|mtia)(:\d+)?")
# One of these is there where a driver of a GPU is: NVIDIA's, its own boards', AMD's, Windows'.
_DRIVERS = ("/dev/nvidiactl", "/dev/nvmap", "/dev/kfd", "/dev/dxg")


def check_device(name: str) -> None:
    """Refuse a device that cannot be had, as far as that shows without torch.

    :raises PruneError: if there is none of this name, or CUDA and neither driver nor build for it
    """
    if not _NAMES.fullmatch(name):
        raise PruneError(f"unknown device {name!r}", hint=_HINT)
    if not name.startswith("cuda"):
        return
    if not any(Path(driver).exists() for driver in _DRIVERS):
        raise PruneError(f"--device {name}: this machine has no GPU", hint="--device cpu, or auto")
    try:
        build = importlib.metadata.version("torch")
    except importlib.metadata.PackageNotFoundError:
        return
    if build.endswith("+cpu"):
        raise PruneError(
            f"--device {name}: torch {build} is a build for CPUs", hint="install one for CUDA"
        )


def pick_device(name: str) -> str:
    """Return a torch device: ``auto`` takes a GPU where there is one.

    :raises PruneError: if torch knows no such device, or there are fewer GPUs
    """
    import torch

    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise PruneError(f"unknown device {name!r}", hint=_HINT) from None
    if device.type == "cuda" and (device.index or 0) >= (count := torch.cuda.device_count()):
        raise PruneError(f"--device {name}: torch sees {count} GPUs", hint=_HINT)
    return str(device)


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
