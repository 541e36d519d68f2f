"""What of vLLM's own features a compact or map-only model cannot be served with."""

from __future__ import annotations

from typing import Any

from vllm_moe_prune.errors import PruneError
from vllm_moe_prune.routing_map import RoutingMap
from vllm_moe_prune.vllm_compat.drafts import own_counts_in
from vllm_moe_prune.vllm_compat.lora import adapts_experts


def check_pruned(vllm_config: Any, routing_map: RoutingMap) -> None:
    """Refuse everything below that a compact or map-only model cannot be served with.

    :raises PruneError: naming the rule and what to use instead
    """
    check_parallel(vllm_config, routing_map)
    check_lora(vllm_config)
    check_routed_experts(vllm_config, routing_map)


def check_parallel(vllm_config: Any, routing_map: RoutingMap) -> None:
    """Refuse kinds of parallelism that a compact or map-only model does not support.

    :raises PruneError: naming the rule and what to use instead
    """
    parallel = vllm_config.parallel_config
    counts = {layer.num_kept for layer in routing_map.layers}
    if routing_map.substitutes and _splits_tokens_or_experts(parallel):
        raise PruneError(
            "constant vectors stand for experts of this model, and ranks that share out experts or "
            "tokens would add them more than once",
            hint="use --tensor-parallel-size alone",
        )
    size = parallel.tensor_parallel_size * parallel.data_parallel_size
    size *= getattr(parallel, "prefill_context_parallel_size", 1)
    # On one rank vLLM does as if expert parallelism were not asked for.
    shares = parallel.enable_expert_parallel and size > 1
    if shares and (len(counts) > 1 or max(counts) % size):
        raise PruneError(
            "expert parallelism needs the same number of experts in every layer, a multiple of the "
            f"{size} ranks; this model has {min(counts)} to {max(counts)}",
            hint="use --tensor-parallel-size without --enable-expert-parallel",
        )
    if parallel.enable_eplb:
        raise PruneError(
            "expert load balancing (EPLB) is not supported with a compact or map-only model",
            hint="leave --enable-eplb out",
        )


def _splits_tokens_or_experts(parallel: Any) -> bool:
    more = parallel.data_parallel_size * getattr(parallel, "prefill_context_parallel_size", 1)
    return bool(parallel.enable_expert_parallel) or more > 1


def check_lora(vllm_config: Any) -> None:
    """Refuse LoRA adapters beyond attention on a compact or map-only model.

    vLLM expects an adapter to have as many experts in every layer.

    :raises PruneError: naming the option to add
    """
    if adapts_experts(vllm_config):
        raise PruneError(
            "LoRA on a compact or map-only model is for attention only, not for experts and gates",
            hint="add --lora-target-modules q_proj k_proj v_proj o_proj",
        )


def check_draft(vllm_config: Any, model_config: Any) -> None:
    """Refuse to balance experts where draft layers have another number of them.

    :param model_config: that of the draft layers
    :raises PruneError: naming the option to leave out
    """
    own = own_counts_in(model_config.hf_text_config)
    if own is not None and vllm_config.parallel_config.enable_eplb:
        raise PruneError(
            f"expert load balancing (EPLB) is not supported with {own[0]} experts in draft layers "
            "and another number in the others",
            hint="leave --enable-eplb out",
        )


def check_routed_experts(vllm_config: Any, routing_map: RoutingMap) -> None:
    """Refuse to return the chosen experts where layers differ in how many are active.

    vLLM collects them in one tensor [tokens, layers, k] with the largest k. A layer with k = 1
    would be written into all of its columns without an error, any other one ends the server.

    :raises PruneError: naming the option to leave out
    """
    active = sorted({layer.top_k for layer in routing_map.layers})
    if len(active) > 1 and _returns_routed_experts(vllm_config):
        raise PruneError(
            f"vLLM returns as many experts of every layer; this model has top-{active[0]} to "
            f"top-{active[-1]}",
            hint="leave --enable-return-routed-experts out",
        )


def check_metrics(vllm_config: Any) -> None:
    """Refuse to count the tokens of experts where the counts could not be had, or not of all.

    :raises PruneError: naming what is in the way
    """
    parallel = vllm_config.parallel_config
    without = "leave expert_metrics out"
    if parallel.data_parallel_size > 1:
        raise PruneError(
            "expert_metrics counts in one engine; with data parallelism vLLM would ask the first",
            hint=f"start one server for each rank, or {without}",
        )
    if parallel._api_process_count > 1:
        raise PruneError(
            "expert_metrics needs one API server: several of them share metrics through files, "
            "which have no place for it",
            hint=f"leave --api-server-count out, or {without}",
        )
    if _returns_routed_experts(vllm_config):
        raise PruneError(
            "expert_metrics and --enable-return-routed-experts need the same place in the routers",
            hint="leave one of them out",
        )


def _returns_routed_experts(vllm_config: Any) -> bool:
    # vLLM 0.32 has the switch in a config of its own, versions before it in the model's.
    places = (getattr(vllm_config, "aux_output_config", None), vllm_config.model_config)
    return any(getattr(place, "enable_return_routed_experts", False) for place in places)
