"""When an entry is an outlier, and where outputs wait until that is known: EAO of MC-Suite.

An outlier is an entry outside mean +- 3 standard deviations of its hidden dimension over *all*
tokens of the expert, which is known only at the end. So outputs are looked at twice.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from offline.calibration.expert_blocks import ExpertBlocks
from offline.calibration.hidden import read_tensor, write_tensor

SIGMAS = 3.0  # c of MC-Suite
# A constant dimension, or an entry at a threshold, must not become an outlier by rounding alone.
_SLACK = 1e-9


def margin(mean: Tensor, sigma: Tensor) -> Tensor:
    """Return how far from the mean an outlier begins; both arguments of one shape."""
    return SIGMAS * (1.0 + _SLACK) * sigma + _SLACK * mean.abs()


class RecordedOutputs:
    """Outputs of a layer's experts, batch by batch, in a temporary file without a name.

    On a GPU they stay where they are while more than half of its memory is free. How they are laid
    out stays in memory, some 6 bytes for each expert of a token.

    :param folder: for the file; the system's temporary folder if not given
    """

    def __init__(self, folder: Path | None = None) -> None:
        self._file: Any = tempfile.TemporaryFile(dir=folder, buffering=0)  # noqa: SIM115
        self._blocks: list[ExpertBlocks] = []
        self._outputs: list[Tensor] = []  # on the device "meta": in the file
        self._devices: list[torch.device] = []

    def clear(self) -> None:
        """Forget them all."""
        self._file.seek(0)
        self._file.truncate()
        for kept in (self._blocks, self._outputs, self._devices):
            kept.clear()

    def add(self, blocks: ExpertBlocks, outputs: Tensor) -> None:
        """Keep the outputs [T, k, D] of a batch, and how they are laid out."""
        self._blocks.append(blocks)
        self._devices.append(outputs.device)
        if not _has_room(outputs.device):
            write_tensor(self._file, outputs)
            outputs = outputs.to("meta")
        self._outputs.append(outputs)

    def __iter__(self) -> Iterator[tuple[ExpertBlocks, Tensor]]:
        """Yield blocks and outputs as they were added."""
        self._file.seek(0)
        for blocks, outputs, device in zip(self._blocks, self._outputs, self._devices, strict=True):
            if outputs.is_meta:
                host = torch.empty(outputs.shape, dtype=outputs.dtype)
                read_tensor(self._file, host)
                yield blocks, host.to(device)
            else:
                yield blocks, outputs

    def close(self) -> None:
        """Remove the file."""
        self._file.close()


def _has_room(device: torch.device) -> bool:
    """Whether more than half of a device's memory is free; the host's is for other things."""
    if device.type != "cuda":
        return False
    free, total = torch.cuda.mem_get_info(device)
    unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return free + unused > total // 2
