"""How much memory there is, and giving it back."""

from __future__ import annotations

import gc
from pathlib import Path

from vllm_moe_prune.reading import read_text

_LIMIT = Path("/sys/fs/cgroup/memory.max")  # of a container, and what it uses now
_USED = Path("/sys/fs/cgroup/memory.current")


def give_back(device: str) -> None:
    """Give memory of what is no longer needed back, before the next model is loaded."""
    gc.collect()
    if device.startswith("cuda"):
        import torch

        torch.cuda.empty_cache()


def free_bytes(device: str) -> int:
    """Return how much memory of a device is free: of this machine, this container or a GPU."""
    if device != "cpu":
        import torch

        free, _ = torch.cuda.mem_get_info(torch.device(device))
        return int(free)
    import psutil

    free = int(psutil.virtual_memory().available)
    try:
        return min(free, int(read_text(_LIMIT)) - int(read_text(_USED)))
    except ValueError:  # no container (PruneError is one), or one without a limit
        return free
