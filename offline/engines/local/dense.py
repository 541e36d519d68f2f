"""Gives MoE blocks that compute every expert for every token the protocol of all others.

In transformers' Llama-4 the router returns scores [T, E], zero for those not chosen, and every
expert computes every token, multiplied by its score *before*: nobody could see or change which
experts a token goes to. Here such a block's router returns (logits [T, E], weights [T, k], ids
[T, k]) as in other families, and its experts take hidden states, ids and weights and compute
what was chosen. Results and gradients are the same. In Jamba the router is a matrix, and the block
chooses: there it does as in other families, too.
"""

from __future__ import annotations

from types import MethodType
from typing import Any

import torch

from offline.engines.local.router import Routed


def make_sparse(block: torch.nn.Module) -> None:
    """Change a block of dense experts; one that was changed before stays as it is."""
    experts: Any = block.experts
    if type(experts).forward is _compute:
        return
    _behave(block.router, forward=_route)
    _behave(experts, forward=_compute, is_transposed=True, is_concatenated=True)
    _behave(block, forward=_block)


def make_choosing(block: torch.nn.Module) -> None:
    """Let the router of a block choose, where it is a matrix and the block does (Jamba)."""
    own: Any = block
    if not hasattr(own.router, "choose"):
        _behave(own.router, forward=_choose, choose=staticmethod(own.route_tokens_to_experts))
        _behave(own, forward=_chosen_block)


def _behave(module: Any, **attributes: Any) -> None:
    """Make a module one of a subclass with these attributes, under any hook that it has."""
    own = type(module)
    module.__class__ = type(own.__name__, (own,), attributes)
    if hasattr(module, "_old_forward"):  # what accelerate's hooks call
        module._old_forward = MethodType(attributes["forward"], module)


def _route(self: Any, hidden_states: torch.Tensor) -> Routed:
    """Return logits [T, E], weights and ids [T, k] for hidden states [T, D]."""
    logits = torch.nn.functional.linear(hidden_states, self.weight, self.bias)
    best, ids = logits.topk(self.top_k, dim=-1)
    return Routed(logits, best.float().sigmoid().to(logits.dtype), ids)


def _choose(self: Any, hidden_states: torch.Tensor) -> Routed:
    """Return logits [T, E], weights and ids [T, k] for hidden states [T, D]."""
    logits = torch.nn.functional.linear(hidden_states, self.weight, self.bias)
    ids, weights = self.choose(hidden_states, logits)
    return Routed(logits, weights, ids)


def _chosen_block(self: Any, hidden_states: torch.Tensor) -> torch.Tensor:
    flat = hidden_states.flatten(0, -2)
    _, weights, ids = self.router(flat)
    output: torch.Tensor = self.experts(flat, ids, weights)
    return output.view_as(hidden_states)


def _compute(
    self: Any, hidden_states: torch.Tensor, ids: torch.Tensor, weights: torch.Tensor
) -> torch.Tensor:
    """Return the sum [T, D] of the chosen experts for weighted hidden states [T, D]."""
    output = torch.zeros_like(hidden_states)
    experts = list(zip(self.gate_up_proj, self.down_proj, strict=True))  # [D, 2I], [I, D]
    for expert in torch.unique(ids).tolist():
        rows, places = torch.where(ids == expert)
        given = hidden_states[rows] * weights[rows, places, None]
        gate, up = (given @ experts[expert][0]).chunk(2, dim=-1)
        output = output.index_add(0, rows, (up * self.act_fn(gate)) @ experts[expert][1])
    return output


def _block(self: Any, hidden_states: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the block's output [T, D] and the router's logits [T, E], as transformers does."""
    hidden_states = hidden_states.flatten(0, -2)
    logits, weights, ids = self.router(hidden_states)
    return self.shared_expert(hidden_states) + self.experts(hidden_states, ids, weights), logits
