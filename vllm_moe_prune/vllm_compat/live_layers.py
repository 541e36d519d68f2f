"""The MoE layers of a model that vLLM holds ready, to switch and to look at."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch

from vllm_moe_prune.choice import Choice
from vllm_moe_prune.layout import MoeLayout
from vllm_moe_prune.live import LiveLayer
from vllm_moe_prune.live_experts import LiveExperts
from vllm_moe_prune.live_routing import LiveRouting
from vllm_moe_prune.vllm_compat.moe_layers import layer_number, unscaled


def live_routing(
    arguments: Mapping[str, Any], layout: MoeLayout, *, fixed_columns: bool
) -> LiveRouting:
    """Make the routing function of a layer, which chooses as the layer itself would have.

    :param arguments: those of ``FusedMoEFactory``
    """
    count, top_k = int(arguments["num_experts"]), int(arguments["top_k"])
    choice = _choice(arguments, layout)
    return LiveRouting(count, top_k, layout, choice, fixed_columns=fixed_columns)


def _choice(arguments: Mapping[str, Any], layout: MoeLayout) -> Choice:
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
