"""`Operation`: what makes one tensor of a pruned model, or drops one, by names and shapes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

ITEM_BYTES: Mapping[str, int] = {
    "F64": 8, "I64": 8, "U64": 8,
    "F32": 4, "I32": 4, "U32": 4,
    "F16": 2, "BF16": 2, "I16": 2, "U16": 2,
    "F8_E4M3": 1, "F8_E5M2": 1, "F8_E8M0": 1, "I8": 1, "U8": 1, "BOOL": 1,
}  # fmt: skip
COMBINABLE = frozenset({"F64", "F32", "F16", "BF16"})


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """Name, safetensors dtype and shape of a tensor."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def num_bytes(self) -> int:
        """Size of the data in bytes."""
        return math.prod(self.shape) * ITEM_BYTES[self.dtype]


@dataclass(frozen=True, slots=True)
class Copy:
    """``target`` is ``source``, byte for byte."""

    source: str
    target: TensorInfo


@dataclass(frozen=True, slots=True)
class Slice:
    """``target`` is the given rows of ``source``, which has ``count`` of them, in that order.

    Rows are what the first dimension counts, or the last of a tensor [1, count].
    """

    source: str
    target: TensorInfo
    rows: tuple[int, ...]
    count: int


@dataclass(frozen=True, slots=True)
class Mix:
    """``target`` [E', ...] is W_EM times ``source`` [E, ...], computed in float32."""

    source: str
    target: TensorInfo
    matrix: tuple[tuple[float, ...], ...]  # [E', E]


@dataclass(frozen=True, slots=True)
class Combine:
    """``target`` is the sum of coefficient * source, computed in float32, in the target's dtype."""

    sources: tuple[str, ...]
    target: TensorInfo
    coefficients: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Drop:
    """``source`` has no place in the pruned checkpoint."""

    source: TensorInfo


Operation = Copy | Slice | Combine | Mix | Drop
