"""Counts the outliers of every expert's outputs, in a second look at them: EAO of MC-Suite.

An outlier is an entry outside mean +- 3 standard deviations of its hidden dimension over *all*
tokens of the expert, which is known only at the end. Until then the outputs wait in a file.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from offline.calibration.hidden import read_tensor, write_tensor

SIGMAS = 3.0  # c of MC-Suite
# A constant dimension, or an entry at a threshold, must not become an outlier by rounding alone.
_SLACK = 1e-9


def margin(mean: Tensor, sigma: Tensor) -> Tensor:
    """Return how far from the mean an outlier begins; both arguments of one shape."""
    return SIGMAS * (1.0 + _SLACK) * sigma + _SLACK * mean.abs()


class RecordedOutputs:
    """Outputs of experts in the order in which they came, in a temporary file without a name.

    :param folder: for the file; the system's temporary folder if not given
    """

    def __init__(self, folder: Path | None = None) -> None:
        self._file: Any = tempfile.TemporaryFile(dir=folder, buffering=0)  # noqa: SIM115
        self._pieces: list[tuple[int, torch.Size, torch.dtype, torch.device]] = []

    def clear(self) -> None:
        """Forget them all."""
        self._file.seek(0)
        self._file.truncate()
        self._pieces.clear()

    def add(self, expert: int, outputs: Tensor) -> None:
        """Keep the outputs [t, D] of the next t tokens of an expert."""
        write_tensor(self._file, outputs)
        self._pieces.append((expert, outputs.shape, outputs.dtype, outputs.device))

    def __iter__(self) -> Iterator[tuple[int, Tensor]]:
        """Yield each expert and its outputs [t, D] as they were added."""
        self._file.seek(0)
        for expert, shape, dtype, device in self._pieces:
            outputs = torch.empty(shape, dtype=dtype)
            read_tensor(self._file, outputs)
            yield expert, outputs.to(device)

    def close(self) -> None:
        """Remove the file."""
        self._file.close()


def count_outliers(
    recorded: RecordedOutputs, mean: Tensor, deviations: Tensor, tokens: Tensor
) -> Tensor:
    """Return how many outliers each expert has, [E] int64.

    :param mean: [E, D] float64 over all tokens of each expert
    :param deviations: [E, D] float64 sum over the same tokens of (output - mean)^2
    :param tokens: [E] how many these are
    """
    sigma = (deviations / tokens.clamp_min(1)[:, None]).sqrt()
    width = margin(mean, sigma)
    high, low = mean + width, mean - width
    found = torch.zeros(len(mean), dtype=torch.int64, device=mean.device)
    for expert, outputs in recorded:
        exact = outputs.double()
        found[expert] += ((exact > high[expert]) | (exact < low[expert])).sum()
    return found
