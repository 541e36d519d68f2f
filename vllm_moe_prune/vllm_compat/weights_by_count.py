"""Loading tensors that vLLM's model code reshapes by the config's one number of experts."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import groupby
from typing import Any

import torch

from vllm_moe_prune.checkpoint import Checkpoint
from vllm_moe_prune.layout import MoeLayout
from vllm_moe_prune.roles import STACKED_PARTS
from vllm_moe_prune.vllm_compat.config_counts import counts_in, put_counts, set_counts
from vllm_moe_prune.vllm_compat.moe_layers import layer_number


def views_by_count(checkpoint: Checkpoint) -> bool:
    """Whether vLLM views a checkpoint's tensors by the config's count: stacks of MXFP4 blocks."""
    roles = (checkpoint.layout.classify(name) for name in checkpoint.tensors)
    return any(r is not None and r.kind == "stacked" and r.part in STACKED_PARTS for r in roles)


def load_by_count(model: Any, config: Any, layout: MoeLayout, counts: Mapping[int, int]) -> None:
    """Let a model load each layer's tensors while its config says that layer's count.

    gpt-oss reads the count once for all tensors that it is given and views MXFP4 blocks by it. So
    it is given the tensors in runs of layers that have equally many. The model keeps this for
    when its weights are loaded again.

    :param config: the object that the model's code asks
    :param counts: decoder layer -> number of experts in its tensors
    """
    load = model.load_weights

    def load_weights(weights: Iterable[tuple[str, torch.Tensor]]) -> set[str]:
        before, largest = counts_in(config, layout), max(counts.values())
        loaded: set[str] = set()
        runs = groupby(weights, lambda item: counts.get(layer_number(item[0]), largest))
        try:
            for count, run in runs:
                set_counts(config, layout, count)
                loaded |= load(run)
        finally:
            put_counts(config, before)
        return loaded

    model.load_weights = load_weights
