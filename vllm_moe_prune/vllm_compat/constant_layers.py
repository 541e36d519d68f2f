"""MoE layers of vLLM in which constant vectors stand for some of the experts."""

from __future__ import annotations

from typing import Any

import torch

from vllm_moe_prune.constant_experts import ConstantExperts
from vllm_moe_prune.errors import PruneError


def substitute(runner: Any, constants: ConstantExperts | None, *, layer: int) -> None:
    """Let vectors stand for what ``constants`` says of a layer's choices; None: for nothing.

    The experts' fused method is given the rest of each choice, and what the vectors come to is
    added to its output, on one of the ranks that add up their parts.

    :param runner: what ``FusedMoEFactory`` makes
    :raises PruneError: if the layer's kernel chooses experts itself
    """
    experts = runner.routed_experts
    vars(experts).pop("forward_modular", None)
    if constants is None:
        return
    if experts.quant_method.is_monolithic:
        raise PruneError(
            f"layer {layer}: vLLM's kernel ({type(experts.quant_method).__name__}) chooses experts "
            "by itself, so that no vector can stand for one",
            hint="use another kernel of vLLM's (--moe-backend), or drop experts instead",
        )
    compute = experts.forward_modular

    def forward_modular(
        x: torch.Tensor,
        topk_weights: torch.Tensor,
        topk_ids: torch.Tensor,
        shared_experts: Any = None,
        shared_experts_input: torch.Tensor | None = None,
    ) -> torch.Tensor:
        weights, ids, added = constants(topk_weights, topk_ids)
        output: torch.Tensor = compute(x, weights, ids, shared_experts, shared_experts_input)
        if runner.moe_config.tp_rank == 0 or runner._fused_output_is_reduced:
            output[:, : added.shape[1]] += added
        return output

    experts.forward_modular = forward_modular
