"""Loading tensors that vLLM's model code reshapes by the config's one number of experts."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby
from typing import Any

import torch

from vllm_moe_prune.checkpoint import Checkpoint
from vllm_moe_prune.layout import MoeLayout
from vllm_moe_prune.roles import STACKED_PARTS
from vllm_moe_prune.vllm_compat.config_counts import counts_in, put_counts, set_counts
from vllm_moe_prune.vllm_compat.moe_layers import layer_number


def askers_by_count(model: torch.nn.Module, config: Any, checkpoint: Checkpoint) -> list[Any]:
    """Return what vLLM's loading code asks for the count by which it takes stacked tensors.

    That is the config for stacks of MXFP4 blocks, and a part of the model that keeps the count for
    its own loading code, as Step's does.
    """
    layout = checkpoint.layout
    roles = [role for name in checkpoint.tensors if (role := layout.classify(name)) is not None]
    parts = {role.part for role in roles if role.kind == "stacked"}
    if not parts:
        return []
    keeping = [
        module
        for module in model.modules()
        if hasattr(module, "load_weights")
        and isinstance(getattr(module, layout.num_experts_key, None), int)
    ]
    return [config, *keeping] if keeping or not parts.isdisjoint(STACKED_PARTS) else []


def load_by_count(
    model: Any, asked: Sequence[Any], layout: MoeLayout, counts: Mapping[int, int]
) -> None:
    """Let a model load each layer's tensors while its config says that layer's count.

    gpt-oss reads the count once for all tensors that it is given and views MXFP4 blocks by it. So
    it is given the tensors in runs of layers that have equally many. The model keeps this for
    when its weights are loaded again.

    :param asked: the objects that the model's code asks
    :param counts: decoder layer -> number of experts in its tensors
    """
    load = model.load_weights

    def load_weights(weights: Iterable[tuple[str, torch.Tensor]]) -> set[str]:
        before, largest = [counts_in(one, layout) for one in asked], max(counts.values())
        loaded: set[str] = set()
        runs = groupby(weights, lambda item: counts.get(layer_number(item[0]), largest))
        try:
            for count, run in runs:
                for one in asked:
                    set_counts(one, layout, count)
                loaded |= load(run)
        finally:
            for one, own in zip(asked, before, strict=True):
                put_counts(one, own)
        return loaded

    model.load_weights = load_weights
