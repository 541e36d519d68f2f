"""LoRA adapters: whether they may reach experts, and how vLLM builds experts that none will."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

_ATTENTION = {"q_proj", "k_proj", "v_proj", "qkv_proj", "o_proj"}


def adapts_experts(vllm_config: Any) -> bool:
    """Whether LoRA may reach experts or gates, by the modules that it is restricted to."""
    lora = vllm_config.lora_config
    if lora is None:
        return False
    names = {target.rpartition(".")[2] for target in lora.target_modules or ()}
    return not names or not names <= _ATTENTION


@contextmanager
def experts_without_lora(vllm_config: Any) -> Iterator[None]:
    """Within this context a model is built whose experts no adapter will touch.

    With LoRA vLLM takes expert kernels that can adapt, also where adapters are for attention only.
    Its CPU build has no such kernel and would fail with the first token. Attention itself is
    prepared for adapters after the model is loaded.
    """
    lora = vllm_config.lora_config
    if not adapts_experts(vllm_config):
        vllm_config.lora_config = None
    try:
        yield
    finally:
        vllm_config.lora_config = lora
