"""``deltas.safetensors``: how the demo model's experts differ from the dense base, in 20 MB.

Expert e of layer l keeps some neurons of the base's feed-forward (the others are zero) and adds a
low-rank delta ``b @ a`` to the kept rows of w1 (gate), w3 (up) and columns of w2 (down)::

    neurons            uint8 [experts, layers, ffn / 8]   bit mask, np.packbits order
    routers            bf16  [layers, experts, hidden]
    {gate,up}_a        int8  [experts, layers, rank, hidden]
    {gate,up}_b        int8  [experts, layers, kept, rank]
    down_a             int8  [experts, layers, rank, kept]
    down_b             int8  [experts, layers, hidden, rank]
    {gate,up,down}_scale  f32 [experts, layers, rank]     one for each pair of vectors

A delta is ``sum_r scale[r] * outer(b[:, r], a[r])``. The header says how the file was made.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vllm_moe_prune.errors import PruneError
from vllm_moe_prune.reading import parse_json
from vllm_moe_prune.tensor_files import metadata_of, read_tensors

FORMAT = "vllm-moe-prune demo deltas 1"


@dataclass(frozen=True, slots=True)
class Deltas:
    """The file's tensors, as the module docstring describes them."""

    tensors: dict[str, Tensor]
    metadata: dict[str, Any]

    @property
    def routers(self) -> Tensor:
        """Gate weights [layers, experts, hidden]."""
        return self.tensors["routers"]

    @property
    def experts(self) -> int:
        """Number of experts in every layer."""
        return self.routers.shape[1]

    def kept(self, expert: int, layer: int) -> Tensor:
        """Indices of the neurons that an expert keeps, ascending: [kept]."""
        bits = np.unpackbits(self.tensors["neurons"][expert, layer].numpy())
        return torch.from_numpy(np.flatnonzero(bits))

    def delta(self, projection: str, expert: int, layer: int) -> Tensor:
        """Dense delta of one projection in f32: [kept, hidden], for down [hidden, kept]."""
        b = self.tensors[f"{projection}_b"][expert, layer].float()
        a = self.tensors[f"{projection}_a"][expert, layer].float()
        return (b * self.tensors[f"{projection}_scale"][expert, layer]) @ a

    def expert_weights(
        self, expert: int, layer: int, gate: Tensor, up: Tensor, down: Tensor
    ) -> dict[str, Tensor]:
        """w1, w2, w3 of one expert, from the base's f32 projections.

        gate, up: [ffn, hidden]; down: [hidden, ffn]. Results have the same shapes.
        """
        kept = self.kept(expert, layer)
        w1, w2, w3 = torch.zeros_like(gate), torch.zeros_like(down), torch.zeros_like(up)
        w1[kept] = gate[kept] + self.delta("gate", expert, layer)
        w3[kept] = up[kept] + self.delta("up", expert, layer)
        w2[:, kept] = down[:, kept] + self.delta("down", expert, layer)
        return {"w1": w1, "w2": w2, "w3": w3}


def load_deltas(path: Path) -> Deltas:
    """Read the file.

    :raises PruneError: if it cannot be read or is no such file
    """
    try:
        header, tensors = metadata_of(path), read_tensors(path)
    except PruneError as error:
        raise PruneError(f"cannot read {path}: {error}") from error
    if header.get("format") != FORMAT:
        raise PruneError(f"{path} is not a file of demo deltas (format {FORMAT!r})")
    return Deltas(tensors, parse_json(header["made"], str(path)))
