"""Where a constant vector can stand for an expert, and checkpoints in which one does already."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vllm_moe_prune.config_keys import value_at
from vllm_moe_prune.errors import PruneError
from vllm_moe_prune.layout import MoeLayout

# Where vLLM 0.33 reads that vectors stand for experts.
_KEYS = (
    "approximate_experts",
    "text_config.approximate_experts",
    "compression_config.transform_config.expert_substitution",
)


def check_substitutable(layout: MoeLayout) -> None:
    """Refuse a family in whose layers no vector can take an expert's place.

    :raises PruneError: naming the reason
    """
    if layout.weights_on_input:
        why = "its routing weights multiply what an expert is given, so that none has one output"
    elif layout.zero_experts_key:
        why = "its router also chooses experts without weights"
    elif any(form.tables for form in layout.forms):
        why = "tables say by token which experts compute it"
    else:
        return
    raise PruneError(
        f"experts of a {layout.model_type} model cannot be substituted: {why}",
        hint="drop them instead",
    )


def check_computes_all(config: Mapping[str, Any]) -> None:
    """Refuse a checkpoint in which constant vectors stand for experts, as vLLM 0.33 serves it.

    :param config: its config.json
    :raises PruneError: naming the key that says so
    """
    key = next((key for key in _KEYS if value_at(config, key)), None)
    if key is None:
        return
    raise PruneError(
        f"constant vectors stand for experts of this checkpoint already ({key} in config.json)",
        hint="give the model that it was made of; vLLM 0.33 and later serve this one as it is",
    )
