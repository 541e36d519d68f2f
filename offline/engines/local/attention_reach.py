"""How far a model's attention reaches: what may share a row of a batch depends on it."""

from __future__ import annotations

import sys
from typing import Any

_KNOWN = {"full_attention", "sliding_attention", "chunked_attention"}


def attention_reach(config: Any) -> int:
    """Return up to how many tokens each one attends to all before it, in every layer.

    Windows end it, and chunks. It is 0 where a layer does not attend but carries a state along the
    row (linear attention), whatever a mask says, and where attention is computed in a way that does
    not take a mask of booleans.

    :param config: transformers' config of an opened language model
    """
    if config._attn_implementation != "sdpa":
        return 0
    kinds = set(getattr(config, "layer_types", None) or ())
    if not kinds <= _KNOWN:
        return 0
    limits = [sys.maxsize]
    window = getattr(config, "sliding_window", None)
    if window and (not kinds or "sliding_attention" in kinds):
        limits.append(int(window))
    if "chunked_attention" in kinds:
        limits.append(int(config.attention_chunk_size))
    return min(limits)
