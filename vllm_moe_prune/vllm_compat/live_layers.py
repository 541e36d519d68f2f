"""The MoE layers of a model that vLLM holds ready, to switch and to look at."""

from __future__ import annotations

from typing import Any

import torch

from vllm_moe_prune.live import LiveExperts, LiveLayer, LiveRouting
from vllm_moe_prune.vllm_compat.moe_layers import layer_number, unscaled


def live_layers(model: torch.nn.Module) -> dict[int, LiveLayer]:
    """Return decoder layer -> its switchable parts, for a model of `LiveMoELoader`."""
    found = {}
    for name, module in model.named_modules():
        experts = getattr(module, "routed_experts", None)
        routing = getattr(getattr(module, "router", None), "custom_routing_function", None)
        routing = unscaled(routing)
        if experts is not None and isinstance(routing, LiveRouting):
            found[layer_number(name)] = LiveLayer(routing, LiveExperts(experts))
    return found


def is_quantised(experts: Any) -> bool:
    """Whether the experts of a layer are stored in a form that cannot be added up."""
    from vllm.model_executor.layers.fused_moe.unquantized_fused_moe_method import (
        UnquantizedFusedMoEMethod,
    )

    return not isinstance(experts.quant_method, UnquantizedFusedMoEMethod)
