"""`LiveLayer`: a loaded MoE layer that takes one routing map after another, not loaded again."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from vllm_moe_prune.constant_experts import ConstantExperts
from vllm_moe_prune.live_experts import LiveExperts
from vllm_moe_prune.live_routing import LiveRouting
from vllm_moe_prune.routing_map import RoutingMap


@dataclass(frozen=True, slots=True)
class LiveLayer:
    """One decoder layer with experts; ``substitute`` lets vectors stand for some, None for none."""

    routing: LiveRouting
    experts: LiveExperts
    substitute: Callable[[ConstantExperts | None], None]

    def set(self, routing_map: RoutingMap | None, layer: int) -> None:
        """Behave as the map's entry for decoder layer ``layer`` says; None is the base.

        What does so already is not touched: a candidate often differs from the last in few layers.
        """
        if routing_map is None:
            self.experts.set(None)
            self.routing.set(None)
            self.substitute(None)
            return
        entry = routing_map.by_layer()[layer]
        merged = entry.experts.kept is None
        self.experts.set(routing_map.expert_matrix(entry) if merged else None)
        mapped = entry.router == "mapped"
        self.routing.set(entry, routing_map.router_matrix(entry) if mapped else None)
        constants = None
        if entry.substituted is not None:
            constants = ConstantExperts.among_all(routing_map, entry, self.routing.slots.device)
        self.substitute(constants)
