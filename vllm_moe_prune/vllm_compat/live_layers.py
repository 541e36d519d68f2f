"""The MoE layers of a model that vLLM holds ready, to switch and to look at."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch

from vllm_moe_prune.layout import MoeLayout
from vllm_moe_prune.live import LiveLayer
from vllm_moe_prune.live_experts import LiveExperts
from vllm_moe_prune.live_routing import LiveRouting
from vllm_moe_prune.vllm_compat.choices import choice_of
from vllm_moe_prune.vllm_compat.constant_layers import substitute
from vllm_moe_prune.vllm_compat.moe_layers import layer_number, unscaled


def live_routing(
    arguments: Mapping[str, Any], layout: MoeLayout, *, fixed_columns: bool
) -> LiveRouting:
    """Make the routing function of a layer, which chooses as the layer itself would have.

    :param arguments: those of ``FusedMoEFactory``
    """
    count, top_k = int(arguments["num_experts"]), int(arguments["top_k"])
    choice = choice_of(arguments, layout)
    return LiveRouting(count, top_k, layout, choice, fixed_columns=fixed_columns)


def live_layers(model: torch.nn.Module) -> dict[int, LiveLayer]:
    """Return decoder layer -> its switchable parts, for a model of `LiveMoELoader`."""
    found = {}
    for name, module in model.named_modules():
        routing = getattr(getattr(module, "router", None), "custom_routing_function", None)
        routing = unscaled(routing)
        if hasattr(module, "routed_experts") and isinstance(routing, LiveRouting):
            found[layer_number(name)] = _live_layer(name, module, routing)
    return found


def _live_layer(name: str, runner: Any, routing: LiveRouting) -> LiveLayer:
    constants = partial(substitute, runner, layer=layer_number(name))
    return LiveLayer(routing, LiveExperts(runner.routed_experts), constants)


def is_quantised(experts: Any) -> bool:
    """Whether the experts of a layer are stored in a form that cannot be added up."""
    from vllm.model_executor.layers.fused_moe.unquantized_fused_moe_method import (
        UnquantizedFusedMoEMethod,
    )

    return not isinstance(experts.quant_method, UnquantizedFusedMoEMethod)


def run_eagerly(model_runner: Any, *, eagerly: bool) -> None:
    """Let a recorded model compute step by step for a while: what watches it is not recorded.

    Without an effect on a model that is not recorded.
    """
    for module in model_runner.get_model().modules():
        if hasattr(module, "compiled"):  # what vLLM's decorator for torch.compile leaves
            module.do_not_compile = eagerly
    name = "_determine_batch_execution_and_padding"  # also decides whether a graph is replayed
    vars(model_runner).pop(name, None)
    if eagerly:
        setattr(model_runner, name, partial(getattr(model_runner, name), force_eager=True))
