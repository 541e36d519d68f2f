"""Hidden states between two layers, kept in a plain file: their number must not need memory."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

Shape = tuple[int, ...]


class HiddenStates:
    """A tensor for every batch, in the file's own dtype; read and written one batch at a time.

    Not a memory map: pages of one that were touched count as the process's memory.

    :param file: made anew
    :param shapes: of the batches' tensors, [B, L, D]
    """

    def __init__(self, file: Path, shapes: Sequence[Shape], dtype: torch.dtype) -> None:
        self._shapes, self._dtype = tuple(shapes), dtype
        self._file: io.FileIO = file.open("w+b", buffering=0)
        sizes = [torch.Size(shape).numel() * dtype.itemsize for shape in self._shapes]
        self._offsets = [sum(sizes[:number]) for number in range(len(sizes))]

    def write(self, number: int, hidden: torch.Tensor) -> None:
        """Keep the tensor of one batch in place of what there was."""
        assert hidden.shape == self._shapes[number] and hidden.dtype == self._dtype
        data = _bytes(hidden.detach().contiguous().cpu())
        self._file.seek(self._offsets[number])
        while data:  # a disk may take less than all at once
            data = data[self._file.write(data) :]

    def read(self, number: int, device: torch.device) -> torch.Tensor:
        """Return the tensor of one batch."""
        hidden = torch.empty(self._shapes[number], dtype=self._dtype)
        data = _bytes(hidden)
        self._file.seek(self._offsets[number])
        while data:
            count = self._file.readinto(data)
            assert count, f"batch {number} was never written whole"
            data = data[count:]
        return hidden.to(device)

    def close(self) -> None:
        """Close the file; its folder is the caller's to remove."""
        self._file.close()


def _bytes(hidden: torch.Tensor) -> memoryview:
    """Return the bytes of a contiguous tensor, writable; numpy has no bfloat16."""
    array: Any = hidden.view(torch.uint8).numpy()
    return memoryview(array).cast("B")
