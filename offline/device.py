"""Which device to compute on."""

from __future__ import annotations

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
