"""How vLLM's own router of a layer would choose, read from what the layer is made with."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch

from vllm_moe_prune.choice import Choice
from vllm_moe_prune.layout import MoeLayout
from vllm_moe_prune.routing import renormalised


def choice_of(arguments: Mapping[str, Any], layout: MoeLayout) -> Choice:
    """Return the choice that a layer would make.

    :param arguments: those of ``FusedMoEFactory``
    """
    own, bias = arguments.get("custom_routing_function"), arguments.get("e_score_correction_bias")
    if own is not None and not layout.mappable:  # those of others are what the layout says
        top_k = int(arguments["top_k"])
        return Choice(layout.score, renormalises=False, own=partial(_owned, own, top_k))
    grouped = bool(arguments.get("use_grouped_topk"))
    return Choice(
        layout.score,
        renormalises=layout.renormalise,
        bias=bias,
        groups=int(arguments.get("num_expert_group") or 1) if grouped else 1,
        active=int(arguments.get("topk_group") or 1) if grouped else 1,
    )


def _owned(
    function: Any, top_k: int, hidden: torch.Tensor, logits: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    found: tuple[torch.Tensor, torch.Tensor] = function(
        hidden_states=hidden, gating_output=logits, topk=top_k, renormalize=False
    )
    return found


class ChoosingRouter(torch.nn.Module):
    """A choice among all rows of a gate, as vLLM's custom_routing_function.

    For layers whose experts are fewer than their router's rows: vLLM's own routers may be part of
    the experts' kernel.
    """

    def __init__(self, choice: Choice) -> None:
        super().__init__()
        self.choice = choice

    def forward(
        self, hidden_states: torch.Tensor, gating_output: torch.Tensor, topk: int, renormalize: bool
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Choose from the router's logits [T, E]; weights and ids [T, k], best first."""
        none = gating_output.new_zeros(gating_output.shape[-1], dtype=torch.float32)
        weights, ids = self.choice(hidden_states, gating_output, none, none, topk)
        if self.choice.renormalises:
            weights = renormalised(weights)
        return weights, ids.to(torch.int32)
