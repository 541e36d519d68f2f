"""The ``vllm.general_plugins`` entry point: makes our load formats known to vLLM.

vLLM calls `register` in the API server, in the engine core and in every worker, maybe twice.
"""

from __future__ import annotations

import sys

LOAD_FORMAT = "pruned_moe"
LIVE_LOAD_FORMAT = "live_moe"  # for searching: an unpruned model whose routing can be switched


def register() -> None:
    """Register the load formats, once. Does nothing in a process that has not imported vLLM."""
    if "vllm" not in sys.modules:
        return
    from vllm_moe_prune.vllm_compat.load_formats import guard_other_loaders, is_registered

    if is_registered(LOAD_FORMAT):
        return
    from vllm.model_executor.model_loader import register_model_loader

    from vllm_moe_prune.live_loader import LiveMoELoader
    from vllm_moe_prune.loader import PrunedMoELoader, refuse_compact

    register_model_loader(LOAD_FORMAT)(PrunedMoELoader)
    register_model_loader(LIVE_LOAD_FORMAT)(LiveMoELoader)
    guard_other_loaders(refuse_compact, ours=LOAD_FORMAT)
