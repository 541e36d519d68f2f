"""vLLM's first process: where its arguments become configs, and where models are listed.

`EngineArgs.create_engine_config` is called before anything is started, by `vllm serve`, each of
its API servers and `vllm.LLM` alike, and plugins are loaded before it.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from typing import Any

from vllm_moe_prune.served import Served

_ARGUMENTS = "vllm.engine.arg_utils"
_MODELS = "vllm.entrypoints.openai.models.serving"
_MARK = "checks_pruned"
_SERVED = "pruned_moe_served"  # an attribute of ModelConfig that is none of its fields: not hashed


def guard_arguments(before: Callable[[Any], Any], after: Callable[[Any, Any], None]) -> None:
    """Let vLLM's configs be made only after and before these two have looked.

    :param before: gets the arguments; what it returns goes to the other
    :param after: gets the `VllmConfig`, too. Both raise what ends the process
    """
    module = sys.modules.get(_ARGUMENTS)
    if module is None:  # a worker, which gets configs that are made already
        return
    whole = module.EngineArgs.create_engine_config
    if hasattr(whole, _MARK):
        return

    @functools.wraps(whole)
    def create_engine_config(self: Any, *given: Any, **named: Any) -> Any:
        found = before(self)
        config = whole(self, *given, **named)
        after(config, found)
        return config

    setattr(create_engine_config, _MARK, True)
    module.EngineArgs.create_engine_config = create_engine_config


def remember(model_config: Any, served: Served) -> None:
    """Keep what is served beside vLLM's own config of it, and list it with the model's name."""
    object.__setattr__(model_config, _SERVED, served)
    _mark_models()


def served_by(model_config: Any) -> Served | None:
    """Return what `remember` kept."""
    found: Served | None = getattr(model_config, _SERVED, None)
    return found


def _mark_models() -> None:
    """Let ``/v1/models`` say of a pruned model that it is one, where there is a server."""
    module = sys.modules.get(_MODELS)
    if module is None or hasattr(module.OpenAIModelRegistry, _MARK):
        return
    registry = module.OpenAIModelRegistry
    whole = registry.show_available_models

    @functools.wraps(whole)
    async def show_available_models(self: Any) -> Any:
        models = await whole(self)
        served = served_by(self.model_config)
        if served is not None:
            for card in models.data:
                card.pruning = served.card()
        return models

    registry.show_available_models = show_available_models
    setattr(registry, _MARK, True)


def is_server() -> bool:
    """Whether this process will list models over HTTP, as `vllm.LLM` does not."""
    return _MODELS in sys.modules


def is_first_to_tell(vllm_config: Any) -> bool:
    """Whether this process is the one of all API servers whose log is to say what is served."""
    parallel = vllm_config.parallel_config
    return bool(parallel._api_process_count == 1 or parallel._api_process_rank < 0)


def drafting_model(vllm_config: Any) -> tuple[Any, str] | None:
    """Return the config of another model that drafts, and the load format that opens it."""
    drafting = vllm_config.speculative_config
    draft = getattr(drafting, "draft_model_config", None)
    if draft is None:
        return None
    load = getattr(drafting, "draft_load_config", None) or vllm_config.load_config
    return draft, str(load.load_format)
