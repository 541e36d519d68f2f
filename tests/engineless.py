"""Models that vLLM makes in this process, without an engine: what a loader does, in a second.

Import after a check that vLLM is installed.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from vllm.config import VllmConfig, set_current_vllm_config
from vllm.distributed import (
    cleanup_dist_env_and_memory,
    init_distributed_environment,
    initialize_model_parallel,
    model_parallel_is_initialized,
)
from vllm.engine.arg_utils import EngineArgs
from vllm.model_executor.layers.rotary_embedding import _ROPE_DICT
from vllm.model_executor.model_loader import get_model_loader
from vllm.model_executor.models import registry

from vllm_moe_prune.plugin import register


@contextmanager
def alone() -> Iterator[None]:
    """Within this context, of one test or of a file's, models can be loaded here."""
    register()
    with pytest.MonkeyPatch.context() as patch:
        # vLLM looks at a new model class in a process of its own, which takes longer than all else.
        patch.setattr(registry, "_run_in_subprocess", lambda look: look())
        patch.setattr(torch.accelerator, "empty_cache", lambda: None)  # as vLLM's CPU worker
        try:
            yield
        finally:
            _ROPE_DICT.clear()  # a reload leaves what it shares between models without data
            cleanup_dist_env_and_memory()


def config_of(folder: Path, **arguments: Any) -> VllmConfig:
    """Return vLLM's whole config for a model, by the arguments of `vllm.LLM`."""
    settings: dict[str, Any] = {"dtype": "float32", "max_model_len": 64, "enforce_eager": True}
    return EngineArgs(str(folder), **settings | arguments).create_engine_config()


def loaded(config: VllmConfig, scratch: Path) -> torch.nn.Module:
    """Return the model of a config with its weights.

    :param scratch: a folder of this test
    """
    with set_current_vllm_config(config):
        if not model_parallel_is_initialized():
            place = f"file://{scratch / 'rendezvous'}"
            init_distributed_environment(1, 0, place, 0, "gloo")
            initialize_model_parallel()
        loader = get_model_loader(config.load_config)
        return loader.load_model(config, config.model_config)


def load(folder: Path, scratch: Path, *load_formats: str) -> list[torch.nn.Module]:
    """Return the model that vLLM makes of ``folder`` by each of the formats."""
    return [loaded(config_of(folder, load_format=one), scratch) for one in load_formats]
