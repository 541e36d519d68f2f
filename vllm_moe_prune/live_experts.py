"""`LiveExperts`: the stored experts of one layer, which merged ones overwrite and others restore.

E experts of the base, E' of the map, N numbers of one expert.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

_CHUNK = 1 << 22  # numbers of all experts combined at a time: bounds the float32 copies
_WEIGHTS = ("w13_weight", "w2_weight", "w13_bias", "w2_bias")


@dataclass(slots=True)
class LiveExperts:
    """The stored experts of one layer.

    ``module`` holds tensors whose first dimension counts experts; vLLM may have permuted the
    inside of each expert for its kernel, which a linear combination does not notice. The pristine
    copy lies in host memory, made when a layer is merged for the first time: on a GPU the engine
    has given the rest of the device to the KV cache. It is in blocks of some numbers of all
    experts, each of which goes to the device in one piece, from memory that a GPU reads by itself.
    """

    module: Any
    _pristine: dict[str, list[torch.Tensor]] = field(default_factory=dict)
    _held: NDArray[np.float32] | None = None  # row j [E]: what slot j is made of; None: as stored

    @property
    def pristine_bytes(self) -> int:
        """Bytes of the pristine copy of this layer."""
        return sum(t.numel() * t.element_size() for found in self._pristine.values() for t in found)

    @torch.no_grad()
    def set(self, w_em: NDArray[np.float32] | None) -> None:
        """Put new expert j = sum_i W_EM[j, i] * expert i into slot j; None restores all.

        Slots that hold what they should are left alone, and a row with a single 1 is a copy. What
        the others come to does not depend on what was there before.

        :param w_em: W_EM [E', E]
        """
        if w_em is None and self._held is None:
            return
        wanted = np.eye(len(self._weights()[0][1]), dtype=np.float32)
        if w_em is not None:
            wanted[: len(w_em)] = w_em
        held = np.eye(len(wanted), dtype=np.float32) if self._held is None else self._held
        changed = (wanted != held).any(axis=1)
        if not changed.any():
            return
        copied = ((wanted == 1).sum(axis=1) == 1) & ((wanted != 0).sum(axis=1) == 1)
        if (changed & ~copied).any():
            changed |= ~copied  # one product of always the same rows: the same bits
        kinds = (np.flatnonzero(changed & copied), np.flatnonzero(changed & ~copied))
        rows = _Rows.of(wanted, *kinds, self.module.w13_weight.device)
        for name, weight in self._weights():
            if name not in self._pristine:
                self._pristine[name] = _blocks(weight)
            rows.write(self._pristine[name], weight)
        self._held = wanted

    def digest(self) -> str:
        """Return ``sha256:...`` of the stored bytes, to see whether they are as they were."""
        digest = hashlib.sha256()
        for _, weight in self._weights():
            digest.update(weight.cpu().view(torch.uint8).numpy().tobytes())
        return "sha256:" + digest.hexdigest()

    def _weights(self) -> list[tuple[str, torch.Tensor]]:
        """Return name and view [E, N] of each weight."""
        return [(n, self._flat(n)) for n in _WEIGHTS if getattr(self.module, n, None) is not None]

    def _flat(self, name: str) -> torch.Tensor:
        weight: torch.Tensor = getattr(self.module, name).data
        assert weight.is_contiguous(), f"{name} is strided"
        return weight.view(len(weight), -1)


_Index = slice | torch.Tensor  # consecutive rows, or any


@dataclass(frozen=True, slots=True)
class _Rows:
    """Slots to write: copies of pristine experts, and sums of several."""

    copies: tuple[_Index, _Index] | None  # slots and the experts that go there
    sums: tuple[_Index, torch.Tensor] | None  # slots [S] and their rows of W_EM [S, E]

    @classmethod
    def of(
        cls,
        w_em: NDArray[np.float32],
        copied: NDArray[np.intp],
        summed: NDArray[np.intp],
        device: torch.device,
    ) -> _Rows:
        sources, rows = w_em[copied].argmax(axis=1), torch.from_numpy(w_em[summed])
        return cls(
            (_index(copied, device), _index(sources, device)) if len(copied) else None,
            (_index(summed, device), rows.to(device)) if len(summed) else None,
        )

    def write(self, blocks: list[torch.Tensor], weight: torch.Tensor) -> None:
        """Write the slots of a weight [E, N] from its pristine blocks [E, n]."""
        begin = 0
        for block in blocks:
            part = block.to(weight.device, non_blocking=True)
            columns = weight[:, begin : begin + part.shape[1]]
            if self.copies is not None:
                slots, sources = self.copies
                columns[slots] = part[sources]
            if self.sums is not None:
                slots, w_em = self.sums
                found = w_em @ part.float()
                columns[slots] = found if isinstance(slots, slice) else found.to(weight.dtype)
            begin += part.shape[1]


def _index(rows: NDArray[np.intp], device: torch.device) -> _Index:
    if (np.diff(rows) == 1).all():
        return slice(int(rows[0]), int(rows[-1]) + 1)
    return torch.from_numpy(rows).to(device)


def _blocks(weight: torch.Tensor) -> list[torch.Tensor]:
    """Return a copy of a weight [E, N] in host memory, in contiguous blocks [E, n]."""
    size = max(_CHUNK // len(weight), 1)
    blocks = []
    for part in torch.split(weight, size, dim=1):
        block = torch.empty(part.shape, dtype=part.dtype, device="cpu", pin_memory=part.is_cuda)
        blocks.append(block.copy_(part))
    return blocks
