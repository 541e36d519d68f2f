"""Dropping experts of a router whose choice is decided by a correction bias.

DeepSeek-V3, GLM-4-MoE, MiniMax-M2 and others add a bias to the sigmoid scores to choose experts and
weigh them without it. So an expert whose bias is -inf is never chosen, and nothing else changes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from offline.engines.needs import check_only_drops
from vllm_moe_prune.layer_map import LayerMap


@dataclass(slots=True)
class Correction:
    """The correction bias [E] of one layer's router, and what it was."""

    router: Any
    bias: torch.Tensor
    own: torch.Tensor
    top_k: int

    @classmethod
    def of(cls, router: Any, bias: torch.Tensor) -> Correction:
        """Take the bias of a router."""
        return cls(router, bias.data, bias.data.clone(), int(router.top_k))

    def set(self, entry: LayerMap | None) -> None:
        """Choose among what the map's entry keeps; None is the base.

        :raises PruneError: for merged experts or a mapped router
        """
        self.bias.copy_(self.own)
        self.router.top_k = self.top_k
        if entry is None:
            return
        check_only_drops(entry)
        dropped = torch.ones_like(self.bias, dtype=torch.bool)
        dropped[list(entry.slots)] = False
        self.bias.masked_fill_(dropped, float("-inf"))
        self.router.top_k = entry.top_k
