"""The counts of experts in the config object that vLLM's model code asks, under all their names."""

from __future__ import annotations

from functools import reduce
from typing import Any

from vllm_moe_prune.layout import MoeLayout


def counts_in(config: Any, layout: MoeLayout) -> dict[str, Any]:
    """Return what a config has of the counts of experts and of active experts, by key.

    Dots of a key lead into sections. A value may be a list, of a number for every layer.
    """
    keys = (
        *(layout.num_experts_key, *layout.num_experts_aliases),
        *(layout.top_k_key, *layout.top_k_aliases),
    )
    found = {key: reduce(_get, key.split("."), config) for key in keys}
    return {key: value for key, value in found.items() if value is not None}


def put_counts(config: Any, counts: dict[str, Any]) -> None:
    """Write counts by key, as `counts_in` returns them."""
    for key, value in counts.items():
        *sections, name = key.split(".")
        section = reduce(_get, sections, config)
        if isinstance(section, dict):
            section[name] = value
        else:
            setattr(section, name, value)


def set_counts(config: Any, layout: MoeLayout, num_experts: int, top_k: int | None = None) -> None:
    """Write other counts wherever a config has them.

    :param top_k: as it was, if None
    """
    of_experts = {layout.num_experts_key, *layout.num_experts_aliases}
    new: dict[str, Any] = {}
    for key, before in counts_in(config, layout).items():
        value = num_experts if key in of_experts else top_k
        if value is not None:
            new[key] = [value] * len(before) if isinstance(before, list) else value
    put_counts(config, new)


def _get(section: Any, name: str) -> Any:
    return section.get(name) if isinstance(section, dict) else getattr(section, name, None)
