"""vLLM's table of load formats: whether one is in it, and a guard before all the others."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from vllm_moe_prune.vllm_compat.drafts import refuse_own_counts


def is_registered(load_format: str) -> bool:
    """Whether vLLM knows a load format."""
    return load_format in _registry()


def _registry() -> dict[str, type]:
    from vllm.model_executor import model_loader

    registry: dict[str, type] = model_loader._LOAD_FORMAT_TO_MODEL_LOADER
    return registry


Refuse = Callable[[str, str | None], None]


def guard_other_loaders(refuse: Refuse, *, ours: str) -> None:
    """Let every other load format call ``refuse(model, revision)`` before it loads anything."""
    registry = _registry()
    for load_format, loader in list(registry.items()):
        if load_format != ours and not getattr(loader, "guards_compact", False):
            registry[load_format] = _guarded(loader, refuse)


def _guarded(loader: Any, refuse: Refuse) -> type:
    class Guarded(loader):  # type: ignore[misc]
        guards_compact = True

        def load_model(self, vllm_config: Any, model_config: Any, prefix: str = "") -> Any:
            refuse(model_config.model, model_config.revision)
            refuse_own_counts(vllm_config, model_config)
            return super().load_model(vllm_config, model_config, prefix)

    Guarded.__name__ = Guarded.__qualname__ = loader.__name__
    return Guarded
