"""`StoredMatrix`: a quantised matrix as its parts, decoded row by row."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from vllm_moe_prune.errors import PruneError
from vllm_moe_prune.reading import DAMAGED

Parts = Mapping[str, Tensor]
Decode = Callable[[Parts, slice], Tensor]


@dataclass(frozen=True, slots=True)
class StoredMatrix:
    """A quantised matrix [N, K], decoded to float32 where rows are asked for."""

    parts: Parts
    decode: Decode
    shape: torch.Size
    what: str = "a quantised matrix"  # its name, in what is said of damage

    @property
    def device(self) -> torch.device:
        """Where rows are."""
        return torch.device("cpu")

    def detach(self) -> StoredMatrix:
        """Return itself: there is nothing to learn."""
        return self

    def __getitem__(self, rows: slice, /) -> Tensor:
        """Return rows [n, K] in float32.

        :raises PruneError: if its parts do not fit together
        """
        with fitting(self.what):
            return self.decode(self.parts, rows)


@contextmanager
def fitting(what: str) -> Iterator[None]:
    """Say of a matrix in one line that its parts and the config do not fit together."""
    try:
        yield
    except (PruneError, torch.OutOfMemoryError):
        raise
    except (*DAMAGED, RuntimeError) as error:
        raise PruneError(
            f"{what} cannot be decoded: its parts and quantization_config do not fit together "
            f"({(str(error).splitlines() or [type(error).__name__])[0]})",
            hint="download the checkpoint again",
        ) from error
