"""The entry points of vLLM's plugins: what we add to its processes.

``vllm.general_plugins`` calls `register` in the API server, in the engine core and in every worker,
maybe twice. ``vllm.endpoint_plugins`` calls `endpoint` in the API server, where VLLM_PLUGINS names
us.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from vllm_moe_prune.mapped_checkpoint import LOAD_FORMAT

if TYPE_CHECKING:
    from vllm_moe_prune.endpoint import PruningEndpoint

LIVE_LOAD_FORMAT = "live_moe"  # for searching: an unpruned model whose routing can be switched


def register() -> None:
    """Register the load formats, once. Does nothing in a process that has not imported vLLM."""
    if "vllm" not in sys.modules:
        return
    from vllm_moe_prune.first_process import check_arguments, check_config
    from vllm_moe_prune.vllm_compat.first_process import guard_arguments
    from vllm_moe_prune.vllm_compat.load_formats import guard_other_loaders, is_registered

    guard_arguments(check_arguments, check_config)  # whose module may have come since
    if is_registered(LOAD_FORMAT):
        return
    from vllm.model_executor.model_loader import register_model_loader

    from vllm_moe_prune.live_loader import LiveMoELoader
    from vllm_moe_prune.loader import PrunedMoELoader
    from vllm_moe_prune.mapped_checkpoint import refuse_compact
    from vllm_moe_prune.vllm_compat.expert_counts import answer_counts

    register_model_loader(LOAD_FORMAT)(PrunedMoELoader)
    register_model_loader(LIVE_LOAD_FORMAT)(LiveMoELoader)
    guard_other_loaders(refuse_compact, ours=LOAD_FORMAT)
    answer_counts()


def endpoint() -> PruningEndpoint:
    """Make what adds ``GET /v1/pruning`` to vLLM's server."""
    from vllm_moe_prune.endpoint import PruningEndpoint

    return PruningEndpoint()
