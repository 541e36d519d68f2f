"""The tokens of a step laid out by expert: blocks of equal size, each of one expert.

Sums over the tokens of every expert then are products of small matrices and need no loop over
experts, and no number has to come back from the device to know a shape.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

_BLOCK = 64  # pairs of one expert: what fills a last block is lost to padding
# Numbers that are in float32 or float64 at the same time: what a cache holds, or few launches.
_PIECE = {"cpu": 1 << 18}
_PIECE_ELSEWHERE = 1 << 26


@dataclass(frozen=True, slots=True)
class ExpertBlocks:
    """(token, choice) pairs of a step in B blocks of b, sorted by expert.

    A place without a pair repeats the first pair of its block, with ``real`` 0; blocks that stay
    empty repeat pair 0.
    """

    pairs: Tensor  # [B, b] places in the flattened [T k] pairs
    real: Tensor  # [B, b] float32: 1 where there is a pair
    experts: Tensor  # [B]

    @classmethod
    def of(cls, ids: Tensor, num_experts: int) -> ExpertBlocks:
        """Lay out the choices [T, k] of T tokens."""
        flat, size = ids.flatten().long(), _BLOCK
        experts, order = flat.sort(stable=True)
        counts = flat.new_zeros(num_experts).scatter_add_(0, flat, torch.ones_like(flat))
        ends, block_ends = counts.cumsum(0), ((counts + size - 1) // size).cumsum(0)
        before = block_ends - (counts + size - 1) // size  # [E] blocks of the experts before
        number = len(flat) // size + num_experts  # of blocks, at most
        rank = torch.arange(len(flat), device=flat.device) - (ends - counts)[experts]
        places = before[experts] * size + rank
        pairs = flat.new_zeros(number * size).scatter_(0, places, order).view(number, size)
        real = torch.zeros(number * size, dtype=torch.float32, device=flat.device)
        real = real.scatter_(0, places, 1.0).view(number, size)
        blocks = torch.arange(number, device=flat.device)
        owners = torch.searchsorted(block_ends, blocks, right=True).clamp_max(num_experts - 1)
        return cls(torch.where(real > 0, pairs, pairs[:, :1]), real, owners)

    def pieces(self, hidden: int) -> Iterator[ExpertBlocks]:
        """Cut into runs of blocks whose outputs of ``hidden`` numbers are of bounded size."""
        most = _PIECE.get(self.pairs.device.type, _PIECE_ELSEWHERE)
        step = max(most // (self.pairs.shape[1] * hidden), 1)
        for begin in range(0, len(self.experts), step):
            part = slice(begin, begin + step)
            yield ExpertBlocks(self.pairs[part], self.real[part], self.experts[part])
