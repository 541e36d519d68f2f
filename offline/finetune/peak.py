"""The most memory that this process took while a block ran."""

from __future__ import annotations

import contextlib
import resource
from pathlib import Path

import torch

from vllm_moe_prune.reading import read_text

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


class PeakMemory:
    """Context manager; ``found`` is the largest resident set, or what was taken of a GPU."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self.found = 0

    def __enter__(self) -> PeakMemory:
        if self._device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self._device)
        else:
            with contextlib.suppress(OSError):  # not on every system: the peak is then of all time
                _CLEAR.write_text("5")  # Linux: forget the peak of loading
        return self

    def __exit__(self, *_: object) -> None:
        if self._device.type == "cuda":
            self.found = torch.cuda.max_memory_allocated(self._device)
        else:
            self.found = _largest_resident_set()


def _largest_resident_set() -> int:
    if _STATUS.exists():
        lines = read_text(_STATUS).splitlines()
        return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # bytes on macOS
