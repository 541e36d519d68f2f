"""`LiveMoELoader`: loads an original checkpoint whose routing can be switched afterwards."""

from __future__ import annotations

from collections.abc import Mapping
from copy import copy
from typing import Any

import torch
from vllm.config import ModelConfig, VllmConfig
from vllm.config.load import LoadConfig
from vllm.model_executor.model_loader.default_loader import DefaultModelLoader

from vllm_moe_prune.layouts import LAYOUTS, layout_of
from vllm_moe_prune.live_routing import LiveRouting
from vllm_moe_prune.vllm_compat.live_layers import live_routing
from vllm_moe_prune.vllm_compat.moe_layers import routed_by
from vllm_moe_prune.vllm_compat.version import check_version


class LiveMoELoader(DefaultModelLoader):
    """Model loader behind ``load_format="live_moe"``: every MoE layer gets a `LiveRouting`.

    The routing function is given while the model is built, not put in afterwards: vLLM then
    chooses kernels that leave the routing to it (some GPU kernels route by themselves).
    """

    def __init__(self, load_config: LoadConfig) -> None:
        check_version()
        parents = copy(load_config)
        parents.load_format = "auto"  # the parent does not know our format
        super().__init__(parents)

    def create_model(
        self, vllm_config: VllmConfig, model_config: ModelConfig, prefix: str = ""
    ) -> torch.nn.Module:
        """Build the model with a `LiveRouting` in every layer that has experts."""
        config = model_config.hf_text_config.to_dict()
        if config.get("model_type") not in LAYOUTS:  # MiniMax-M3's, which vLLM's class renames
            config = model_config.hf_config.to_dict()
        layout = layout_of(config)
        fixed = not model_config.enforce_eager
        # Enters the key of vLLM's compile cache, which does not know load formats: what is compiled
        # for the model as it is must not stand in for this one.
        if isinstance(vllm_config.additional_config, dict):
            vllm_config.additional_config = {**vllm_config.additional_config, "live_moe": True}

        def routing(arguments: Mapping[str, Any]) -> LiveRouting:
            return live_routing(arguments, layout, fixed_columns=fixed)

        with routed_by(layout, routing):
            return super().create_model(vllm_config, model_config, prefix)
