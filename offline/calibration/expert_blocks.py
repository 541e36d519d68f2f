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
_PIECE_ELSEWHERE = 1 << 27


@dataclass(frozen=True, slots=True)
class ExpertBlocks:
    """(token, choice) pairs of a step in B blocks of b, sorted by expert.

    A place without a pair repeats the first pair of its block; blocks that stay empty repeat
    pair 0.
    """

    pairs: Tensor  # [B, b] int32, places in the flattened [T k] pairs
    real: Tensor  # [B, b] bool: whether there is a pair
    experts: Tensor  # [B]
    counts: Tensor  # [B] pairs, float64

    @classmethod
    def of(cls, ids: Tensor, num_experts: int) -> ExpertBlocks:
        """Lay out the choices [T, k] of T tokens."""
        flat, size = ids.flatten().long(), _BLOCK
        experts, order = flat.sort(stable=True)
        every = torch.arange(num_experts, device=flat.device)
        ends = torch.searchsorted(experts, every, right=True)  # [E]
        counts = ends.diff(prepend=ends.new_zeros(1))
        needed = (counts + size - 1) // size
        block_ends = needed.cumsum(0)
        number = len(flat) // size + num_experts  # of blocks, at most
        # Where the first pair of an expert goes, less the number of pairs before it.
        offsets = (block_ends - needed) * size - (ends - counts)
        places = offsets[experts].add_(torch.arange(len(flat), device=flat.device))
        pairs = torch.full((number * size,), -1, dtype=torch.int32, device=flat.device)
        pairs = pairs.scatter_(0, places, order.int()).view(number, size)
        real = pairs >= 0
        blocks = torch.arange(number, device=flat.device)
        owners = torch.searchsorted(block_ends, blocks, right=True).clamp_max_(num_experts - 1)
        pairs = torch.where(real, pairs, pairs[:, :1]).clamp_min_(0)
        return cls(pairs, real, owners, real.sum(1, dtype=torch.float64))

    def pieces(self, hidden: int) -> Iterator[ExpertBlocks]:
        """Cut into runs of blocks whose outputs of ``hidden`` numbers are of bounded size."""
        most = _PIECE.get(self.pairs.device.type, _PIECE_ELSEWHERE)
        step = max(most // (self.pairs.shape[1] * hidden), 1)
        for begin in range(0, len(self.experts), step):
            part = slice(begin, begin + step)
            yield ExpertBlocks(
                self.pairs[part], self.real[part], self.experts[part], self.counts[part]
            )
