"""`LAYOUTS`: the families that there are, as data.

Adding a family is one entry of ``FAMILIES`` in a file of families/; no code asks for a model type.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from vllm_moe_prune.config_keys import value_at
from vllm_moe_prune.errors import PruneError
from vllm_moe_prune.families import deepseek, mixtral, qwen
from vllm_moe_prune.layout import MoeLayout
from vllm_moe_prune.substitutes import check_computes_all

LAYOUTS: Mapping[str, MoeLayout] = {
    layout.model_type: layout for layout in (*mixtral.FAMILIES, *qwen.FAMILIES, *deepseek.FAMILIES)
}
# Families that are known, and why nothing can be dropped of them.
_REFUSED = {
    "ernie4_5_vl_moe": "its text and vision experts are one list, of which vLLM and transformers "
    "take the first half for text: both would have to lose as many",
}


def layout_of(config: Mapping[str, Any]) -> MoeLayout:
    """Return the layout for a config.json; the names in it are the usual ones (`settled`).

    :raises PruneError: for a family that is not in the table, or if vectors stand for experts
    """
    check_computes_all(config)
    model_type = config.get("model_type")
    if (reason := _REFUSED.get(str(model_type))) is not None:
        raise PruneError(f"a {model_type} model cannot be pruned: {reason}")
    layout = LAYOUTS.get(str(model_type))
    if layout is None:
        raise PruneError(
            f"model type {model_type!r} is not supported",
            hint="`vmprune inspect MODEL --explain` shows what its tensors look like; "
            f"docs/families.md lists the {len(LAYOUTS)} that are supported",
        )
    text = layout.text_config(config)
    layout = _with_keys(layout, text)
    if layout.mtp_layer and not layout.mtp_prefix:
        layout = replace(layout, num_layers=text.get("num_hidden_layers"))
    if layout.zero_experts_key:
        layout = replace(layout, zero_experts=int(text.get(layout.zero_experts_key) or 0))
    renormalise = text.get(layout.renormalise_key) if layout.renormalise_key else None
    return layout if renormalise is None else replace(layout, renormalise=bool(renormalise))


def _with_keys(layout: MoeLayout, text: Mapping[str, Any]) -> MoeLayout:
    """Return the layout with those keys of its counts first that the config has."""

    def sorted_by(keys: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(sorted(keys, key=lambda key: value_at(text, key) is None))

    experts, *aliases = sorted_by((layout.num_experts_key, *layout.num_experts_aliases))
    top_k, *others = sorted_by((layout.top_k_key, *layout.top_k_aliases))
    return replace(
        layout,
        num_experts_key=experts,
        num_experts_aliases=tuple(aliases),
        top_k_key=top_k,
        top_k_aliases=tuple(others),
    )
