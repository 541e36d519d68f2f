"""A `vllm.LLM` from outside: the size of its cache's blocks, and its end."""

from __future__ import annotations

from typing import Any


def block_size(llm: Any) -> int:
    """Return how many tokens one block of an engine's prefix cache holds."""
    return int(llm.llm_engine.vllm_config.cache_config.block_size)


def shut_down(llm: Any) -> None:
    """End the processes of a `vllm.LLM`."""
    llm.llm_engine.engine_core.shutdown()
