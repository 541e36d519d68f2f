"""The routing map that a model was built by, kept where vLLM keeps what it knows of the model."""

from __future__ import annotations

from typing import Any

from vllm_moe_prune.errors import PruneError
from vllm_moe_prune.routing_map import RoutingMap

_KEY = "pruned_moe_map"


def built_by(model_config: Any, routing_map: RoutingMap) -> None:
    """Write the map's digest into the model's config.

    vLLM keeps compiled code, and the memory that a start measured, under a hash of its configs,
    and loads them without looking further. They hold each layer's own counts; without the digest
    two maps with the same largest count would share them.
    """
    setattr(model_config.hf_text_config, _KEY, routing_map.digest())


def check_built_by(model_config: Any, routing_map: RoutingMap | None) -> None:
    """Refuse weights for a model that runs already and was built by another map, or by none.

    :raises PruneError: naming the weights
    """
    wanted = None if routing_map is None else routing_map.digest()
    if getattr(model_config.hf_text_config, _KEY, None) != wanted:
        raise PruneError(
            f"{model_config.model} has another routing map than the model that is running",
            hint="start the server anew with it",
        )
