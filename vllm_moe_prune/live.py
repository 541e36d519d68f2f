"""A loaded MoE layer that takes one routing map after another, without being loaded again.

T tokens, E experts of the base, E' of the map, K routing columns. All that a map changes lies in
tensors of fixed shape that are written in place, so it also holds for a model whose computation
was recorded (torch.compile, CUDA graphs).
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from vllm_moe_prune.layer_map import LayerMap
from vllm_moe_prune.layout import MoeLayout
from vllm_moe_prune.routing import renormalised, route, scores
from vllm_moe_prune.routing_map import RoutingMap

# Rows of W_RM behind the last new expert: scores are at least 0 and sum to more than 0, so such a
# row is below every real one. Not infinite: 0 * inf is not a number.
_NEVER = -1e30
_CHUNK = 1 << 22  # elements of one expert combined at a time: bounds the float32 copies
_WEIGHTS = ("w13_weight", "w2_weight", "w13_bias", "w2_bias")


class LiveRouting:
    """The routing function of one layer; equal to the base's own until `set` is called.

    :param fixed_columns: keep K at the base's top-k and give unused columns the weight 0, as a
        recorded model needs; otherwise K is the map's top-k and fewer experts are computed
    """

    def __init__(
        self, num_experts: int, top_k: int, layout: MoeLayout, *, fixed_columns: bool
    ) -> None:
        self.num_experts, self.top_k, self.layout = num_experts, top_k, layout
        self.fixed_columns = fixed_columns
        self.columns = top_k
        # Made while the model is, hence on the device that the model is being made on.
        self.logit_mask = torch.zeros(num_experts, dtype=torch.float32)  # 0 or -inf
        self.w_rm = torch.eye(num_experts, dtype=torch.float32)
        self.column_mask = torch.ones(top_k, dtype=torch.float32)  # 1, then 0
        self.slots = torch.arange(num_experts)  # new expert j lies in slot slots[j]
        self.watching = False  # while it is, ``seen`` holds the base's scores [T, E] and ids [T, K]
        self.seen: tuple[torch.Tensor, torch.Tensor] | None = None

    def __call__(
        self, hidden_states: torch.Tensor, gating_output: torch.Tensor, topk: int, renormalize: bool
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Choose experts from the router's logits [T, E]; vLLM's custom_routing_function."""
        logits = gating_output.float() + self.logit_mask
        weights, ids = route(
            logits, self.w_rm, self.columns, score=self.layout.score, renormalise=False
        )
        if self.fixed_columns:
            weights = weights.where(self.column_mask > 0, 0.0)
        if self.layout.renormalise:
            weights = renormalised(weights)
        ids = self.slots[ids]
        if self.watching:
            self.seen = (scores(gating_output, self.layout.score), ids)
        return weights, ids.to(torch.int32)

    def set(self, entry: LayerMap | None, w_rm: NDArray[np.float32] | None = None) -> None:
        """Choose as the map's entry says from now on; None is the base.

        :param w_rm: W_RM [E', E] of a mapped router
        """
        experts = self.num_experts
        mask = torch.zeros(experts)
        matrix, slots, top_k = torch.eye(experts), torch.arange(experts), self.top_k
        if entry is not None:
            top_k = entry.top_k
            matrix = torch.full((experts, experts), _NEVER)
            if entry.router == "sliced":
                rows = torch.tensor(entry.router_selection.kept)
                mask.fill_(-torch.inf)[rows] = 0.0
                matrix[: entry.num_kept] = torch.eye(experts)[rows]
            else:
                assert w_rm is not None
                matrix[: entry.num_kept] = torch.from_numpy(w_rm)
            if entry.experts.kept is not None:
                kept = torch.tensor(entry.experts.kept)
                slots = kept[0].repeat(experts)  # unused columns lead to an expert that is kept
                slots[: len(kept)] = kept
        self.logit_mask.copy_(mask)
        self.w_rm.copy_(matrix)
        self.slots.copy_(slots)
        if self.fixed_columns:
            assert top_k <= self.columns
            self.column_mask.copy_(torch.arange(self.columns) < top_k)
        else:
            self.columns = top_k


@dataclass(slots=True)
class LiveExperts:
    """The stored experts of one layer, which continuous maps overwrite and others restore.

    ``module`` holds tensors whose first dimension counts experts; vLLM may have permuted the
    inside of each expert for its kernel, which a linear combination does not notice. The pristine
    copy lies in host memory, made when a layer is merged for the first time: on a GPU the engine
    has given the rest of the device to the KV cache.
    """

    module: Any
    _pristine: dict[str, torch.Tensor] = field(default_factory=dict)
    _overwritten: int = 0  # slots 0..this hold merged experts

    @property
    def pristine_bytes(self) -> int:
        """Bytes of the pristine copy of this layer."""
        return sum(t.numel() * t.element_size() for t in self._pristine.values())

    @torch.no_grad()
    def set(self, w_em: NDArray[np.float32] | None) -> None:
        """Put new expert j = sum_i W_EM[j, i] * expert i into slot j; None restores all.

        :param w_em: W_EM [E', E]
        """
        new = 0 if w_em is None else len(w_em)
        if w_em is not None and not self._pristine:
            self._pristine = {name: self._flat(name).cpu().clone() for name in self._names()}
        for name, old in self._pristine.items():
            weight = self._flat(name)
            if self._overwritten > new:
                weight[new : self._overwritten].copy_(old[new : self._overwritten])
            if w_em is not None:
                _combine(torch.from_numpy(w_em).to(weight.device), old, weight)
        self._overwritten = new

    def digest(self) -> str:
        """Return ``sha256:...`` of the stored bytes, to see whether they are as they were."""
        digest = hashlib.sha256()
        for name in self._names():
            digest.update(self._flat(name).cpu().view(torch.uint8).numpy().tobytes())
        return "sha256:" + digest.hexdigest()

    def _names(self) -> list[str]:
        return [name for name in _WEIGHTS if getattr(self.module, name, None) is not None]

    def _flat(self, name: str) -> torch.Tensor:
        """Return a view [E, N] of a weight."""
        weight: torch.Tensor = getattr(self.module, name).data
        assert weight.is_contiguous(), f"{name} is strided"
        return weight.view(len(weight), -1)


def _combine(w_em: torch.Tensor, old: torch.Tensor, weight: torch.Tensor) -> None:
    """Write W_EM [E', E] @ old [E, N] into the first E' rows of ``weight`` [E, N]."""
    new, size = len(w_em), max(_CHUNK // len(old), 1)
    for begin in range(0, old.shape[1], size):
        part = old[:, begin : begin + size].to(weight.device).float()
        weight[:new, begin : begin + size].copy_(w_em @ part)


@dataclass(frozen=True, slots=True)
class LiveLayer:
    """One decoder layer with experts."""

    routing: LiveRouting
    experts: LiveExperts

    def set(self, routing_map: RoutingMap | None, layer: int) -> None:
        """Behave as the map's entry for decoder layer ``layer`` says; None is the base."""
        if routing_map is None:
            self.experts.set(None)
            self.routing.set(None)
            return
        entry = routing_map.by_layer()[layer]
        merged = entry.experts.kept is None
        self.experts.set(routing_map.expert_matrix(entry) if merged else None)
        mapped = entry.router == "mapped"
        self.routing.set(entry, routing_map.router_matrix(entry) if mapped else None)
