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

    def shape(self, number: int) -> torch.Size:
        """Return the shape of the tensor of one batch."""
        return torch.Size(self._shapes[number])

    def write(self, number: int, hidden: torch.Tensor) -> None:
        """Keep the tensor of one batch in place of what there was."""
        assert hidden.shape == self._shapes[number] and hidden.dtype == self._dtype
        self._file.seek(self._offsets[number])
        write_tensor(self._file, hidden)

    def read(self, number: int, device: torch.device) -> torch.Tensor:
        """Return the tensor of one batch."""
        hidden = torch.empty(self._shapes[number], dtype=self._dtype)
        self._file.seek(self._offsets[number])
        read_tensor(self._file, hidden)
        return hidden.to(device)

    def close(self) -> None:
        """Close the file; its folder is the caller's to remove."""
        self._file.close()


def write_tensor(file: Any, tensor: torch.Tensor) -> None:
    """Write the numbers of a tensor at the place of an unbuffered file."""
    data = _bytes(tensor.detach().contiguous().cpu())
    while data:  # a disk may take less than all at once
        data = data[file.write(data) :]


def read_tensor(file: Any, into: torch.Tensor) -> None:
    """Fill a contiguous tensor with what `write_tensor` wrote at the place of the file."""
    data = _bytes(into)
    while data:
        count = file.readinto(data)
        assert count, "the tensor was never written whole"
        data = data[count:]


def _bytes(tensor: torch.Tensor) -> memoryview:
    """Return the bytes of a contiguous tensor, writable; numpy has no bfloat16."""
    array: Any = tensor.flatten().view(torch.uint8).numpy()
    return memoryview(array)
