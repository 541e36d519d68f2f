"""Dropping experts of a router whose choice is decided by a correction bias.

DeepSeek-V3 and GLM-4-MoE add a bias to the sigmoid scores to choose experts, and weigh them without
it. So an expert whose bias is -inf is never chosen, and nothing else changes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from vllm_moe_prune.errors import PruneError
from vllm_moe_prune.layer_map import LayerMap
from vllm_moe_prune.layout import MoeLayout


@dataclass(slots=True)
class Correction:
    """The correction bias [E] of one layer's router, and what it was."""

    router: Any
    bias: torch.Tensor
    own: torch.Tensor
    top_k: int

    @classmethod
    def of(cls, router: Any) -> Correction:
        """Take the bias of a router."""
        bias: torch.Tensor = router.e_score_correction_bias.data
        return cls(router, bias, bias.clone(), int(router.top_k))

    def set(self, entry: LayerMap | None) -> None:
        """Choose among what the map's entry keeps; None is the base.

        :raises PruneError: for merged experts or a mapped router
        """
        self.bias.copy_(self.own)
        self.router.top_k = self.top_k
        if entry is None:
            return
        kept = entry.experts.kept
        if kept is None or entry.router == "mapped":
            raise PruneError(
                f"layer {entry.layer}: a router with a correction bias can only lose experts",
                hint="use a one-hot map with sliced routers",
            )
        dropped = torch.ones_like(self.bias, dtype=torch.bool)
        dropped[list(kept)] = False
        self.bias.masked_fill_(dropped, float("-inf"))
        self.router.top_k = entry.top_k


def check_routable(layout: MoeLayout, num_groups: int, engine: str = "transformers") -> None:
    """Refuse models whose routing no map can change while they are loaded.

    :param num_groups: of the router, 1 where it has none
    :param engine: ``transformers`` or ``vllm``
    :raises PruneError: naming what can be done instead
    """
    if layout.mappable and num_groups == 1:
        return
    if not layout.is_corrected:
        raise PruneError(
            f"no engine can try routing maps of this {layout.model_type} model: its router does "
            "more than to choose the best scores",
            hint="use vmprune score, plan and build, or --method lottery",
        )
    if engine == "vllm":
        raise PruneError(
            f"the vLLM engine cannot try routing maps of a {layout.model_type} model, whose router "
            "has a correction bias",
            hint="use --engine transformers",
        )
