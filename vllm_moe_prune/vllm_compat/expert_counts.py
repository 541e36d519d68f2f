"""Counting the tokens of every expert: in the routers of a worker, and asked for from outside.

A router hands the ids that it chose to a function, before it does anything else with them; here
that adds to a buffer on the device. Nothing is read back until somebody asks, through the engine's
own way of calling all workers.
"""

from __future__ import annotations

from typing import Any

import torch
from vllm.logger import init_logger

from vllm_moe_prune.vllm_compat.moe_layers import layer_number

logger = init_logger(f"vllm.{__name__}")

METHOD = "pruned_moe_expert_tokens"  # of every worker
_BUFFER = "pruned_moe_tokens"


def count_experts(vllm_config: Any, model_config: Any, model: torch.nn.Module) -> None:
    """Let every MoE layer of the served model count; of one that drafts for it none does.

    Where vLLM's kernel chooses experts itself there is nothing to count, which is logged.
    """
    if model_config.runner_type == "draft":
        return
    # Enters the key of vLLM's compile cache: on a CPU the routers are part of what is compiled.
    if isinstance(vllm_config.additional_config, dict):
        vllm_config.additional_config = {**vllm_config.additional_config, METHOD: True}
    for name, module in list(model.named_modules()):
        experts, router = getattr(module, "routed_experts", None), getattr(module, "router", None)
        if experts is None or router is None:
            continue
        if experts.quant_method.is_monolithic or not hasattr(router, "set_capture_fn"):
            kernel = type(experts.quant_method).__name__
            logger.warning("expert_metrics: %s: %s routes by itself, not counted", name, kernel)
            continue
        counts = torch.zeros(
            experts.global_num_experts, dtype=torch.int64, device=vllm_config.device_config.device
        )
        # A buffer, so that vLLM keeps it while a server sleeps.
        module.register_buffer(_BUFFER, counts, persistent=False)
        router.set_capture_fn(_Adds(module))


class _Adds:
    """Adds the chosen ids [tokens, k] of a step to a layer's counts; captured in CUDA graphs."""

    def __init__(self, module: torch.nn.Module) -> None:
        self._module = (module,)  # in a tuple, or the router would hold its own parent

    def __call__(self, ids: torch.Tensor) -> None:
        counts = getattr(self._module[0], _BUFFER)
        flat = ids.reshape(-1).to(torch.int64)
        counts.scatter_add_(0, flat, torch.ones_like(flat))


def answer_counts() -> None:
    """Give vLLM's workers the method that tells their counts."""
    from vllm.v1.worker.worker_base import WorkerBase

    setattr(WorkerBase, METHOD, _counts)


def _counts(worker: Any, since_start: bool = True) -> list[list[Any]]:
    """Return [decoder layer, tokens of each expert] for the layers that this worker has.

    :param since_start: otherwise the counts begin anew, without what warm-up has added
    """
    found = []
    for name, module in worker.get_model().named_modules():
        counts = getattr(module, _BUFFER, None)
        if counts is not None:
            found.append([layer_number(name), counts.tolist()])
            if not since_start:
                counts.zero_()
    return found
