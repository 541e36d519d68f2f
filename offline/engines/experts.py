"""Makes a live transformers model route and compute as a routing map says, without new weights.

transformers fuses the experts of a layer into ``gate_up_proj`` [E, 2I, D] and ``down_proj``
[E, D, I] and has a router beside them that returns (logits [T, E], weights [T, k], ids [T, k]).
Dropped experts stay in memory: the router just cannot choose them.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from vllm_moe_prune.errors import PruneError
from vllm_moe_prune.layer_map import LayerMap
from vllm_moe_prune.layouts import MoeLayout
from vllm_moe_prune.routing import route
from vllm_moe_prune.routing_map import RoutingMap

_LAYER = re.compile(r"\.layers\.(\d+)\.")
_FUSED = ("gate_up_proj", "down_proj")
Routed = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


@dataclass(slots=True)
class LayerControl:
    """The experts of one decoder layer, switchable between the base and a map.

    ``real`` restricts counting to those tokens [T] that are no padding.
    """

    layer: int
    router: torch.nn.Module
    experts: Any
    layout: MoeLayout
    counts: NDArray[np.int64] | None = None
    real: torch.Tensor | None = None
    _pristine: dict[str, torch.Tensor] = field(default_factory=dict)
    _rule: _Rule | None = None

    @property
    def num_experts(self) -> int:
        """E of the base."""
        return int(self.experts.gate_up_proj.shape[0])

    def __post_init__(self) -> None:
        self.router.register_forward_hook(self._after_router)

    def _after_router(self, _: Any, __: Any, output: Routed) -> Routed | None:
        """Replace the router's choice by the map's; count what is chosen."""
        routed = output if self._rule is None else self._rule(output[0])
        if self.counts is not None:
            ids = routed[2] if self.real is None else routed[2][self.real]
            self.counts += np.bincount(ids.flatten().cpu().numpy(), minlength=self.num_experts)
        return None if self._rule is None else routed

    def apply(self, routing_map: RoutingMap | None) -> None:
        """Behave as the map's entry for this layer says, or as the base."""
        with torch.no_grad():
            for name, weight in self._pristine.items():
                getattr(self.experts, name).copy_(weight)
        self._pristine.clear()
        self._rule = None
        entry = routing_map.by_layer()[self.layer] if routing_map else None
        if routing_map is None or entry is None:
            return
        if entry.experts.kept is None:
            self._combine(torch.from_numpy(routing_map.expert_matrix(entry)))
        self._rule = _Rule.of(entry, routing_map, self.layout, self.experts.gate_up_proj.device)

    def _combine(self, w_em: torch.Tensor) -> None:
        """Put new expert j = sum_i W_EM[j, i] * expert i into slot j; W_EM is [E', E]."""
        for name in _FUSED:
            weight = getattr(self.experts, name)
            self._pristine[name] = weight.detach().clone()
            matrix = w_em.to(weight.device)
            with torch.no_grad():
                for j, row in enumerate(matrix):
                    old = self._pristine[name]
                    weight[j] = sum(row[i] * old[i].float() for i in row.nonzero().flatten())


@dataclass(frozen=True, slots=True)
class _Rule:
    """How the router of one layer chooses under a map: plain tensors, ready to use."""

    rows: torch.Tensor | None  # [E'] gate rows that remain, None if all E do
    w_rm: torch.Tensor  # [E', gate rows] float32
    slots: torch.Tensor | None  # [E'] old id of new expert j, None if they are the same
    top_k: int
    layout: MoeLayout

    @classmethod
    def of(
        cls, entry: LayerMap, routing_map: RoutingMap, layout: MoeLayout, device: torch.device
    ) -> _Rule:
        rows = None
        if entry.router == "sliced":
            rows = torch.tensor(entry.router_selection.kept, device=device)
            w_rm = torch.eye(entry.num_kept)
        else:
            w_rm = torch.from_numpy(routing_map.router_matrix(entry))
        kept = entry.experts.kept
        slots = None if kept is None else torch.tensor(kept, device=device)
        return cls(rows, w_rm.to(device), slots, entry.top_k, layout)

    def __call__(self, logits: torch.Tensor) -> Routed:
        """Choose experts from the logits [T, E]."""
        weights, ids = route(
            logits if self.rows is None else logits[:, self.rows],
            self.w_rm,
            self.top_k,
            score=self.layout.score,
            renormalise=self.layout.renormalise,
        )
        return logits, weights, ids if self.slots is None else self.slots[ids]


def find_layers(model: torch.nn.Module, layout: MoeLayout) -> dict[int, LayerControl]:
    """Find the router and the fused experts of every layer that has them.

    :returns: decoder layer -> its control
    :raises PruneError: if the model holds its experts in another way
    """
    found: dict[int, LayerControl] = {}
    for name, module in model.named_modules():
        experts = getattr(module, "experts", None)
        layer = _LAYER.search(name + ".")
        if layer is None or not all(hasattr(experts, fused) for fused in _FUSED):
            continue
        router = getattr(module, "gate", None)
        if not isinstance(router, torch.nn.Module):
            raise PruneError(f"{name} has experts but no router that this program knows")
        number = int(layer[1])
        found[number] = LayerControl(number, router, experts, layout)
    if not found:
        raise PruneError(
            f"found no fused experts in this {layout.model_type} model",
            hint="use the transformers version that this package asks for",
        )
    return found
