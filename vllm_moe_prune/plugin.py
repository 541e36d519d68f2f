"""The ``vllm.general_plugins`` entry point: makes ``--load-format pruned_moe`` known to vLLM.

vLLM calls `register` in the API server, in the engine core and in every worker, maybe twice.
"""

from __future__ import annotations

import sys

LOAD_FORMAT = "pruned_moe"


def register() -> None:
    """Register the load format, once. Does nothing in a process that has not imported vLLM."""
    if "vllm" not in sys.modules:
        return
    from vllm.model_executor import model_loader

    if LOAD_FORMAT in model_loader._LOAD_FORMAT_TO_MODEL_LOADER:
        return
    from vllm_moe_prune.loader import PrunedMoELoader, refuse_compact
    from vllm_moe_prune.vllm_compat import guard_other_loaders

    model_loader.register_model_loader(LOAD_FORMAT)(PrunedMoELoader)
    guard_other_loaders(refuse_compact, ours=LOAD_FORMAT)
