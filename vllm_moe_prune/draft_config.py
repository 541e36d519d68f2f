"""What config.json says of draft (MTP) layers: how many there are, and how many experts they have.

Where they have as many as the other layers, the config's one count is theirs too. Where they keep
more, a section of our own in the language model's settings has their counts.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vllm_moe_prune.config_keys import value_at, with_value
from vllm_moe_prune.layout import MoeLayout

SECTION = "pruned_moe_drafts"
NUM_EXPERTS, TOP_K = "num_experts", "num_experts_per_tok"
# Keys of how many draft layers there are: one or another, in whatever family.
_COUNTS = (
    *("num_nextn_predict_layers", "mtp_num_hidden_layers"),
    *("num_mtp_modules", "num_mtp_layers"),
)
# Lists with an entry per layer, which Step's configs continue for draft layers. Readers that are
# told of none refuse a list that is longer than the layers are many.
_LISTS = (
    *("layer_types", "mlp_layer_types", "swiglu_limits", "swiglu_limits_shared"),
    *("rope_theta", "partial_rotary_factors"),
)


def promised_drafts(config: Mapping[str, Any], layout: MoeLayout) -> dict[str, int]:
    """Return key -> number of draft layers, of the keys that say that there are any."""
    sections = dict.fromkeys(("", f"{layout.section}." if layout.section else ""))
    found = {s + key: value_at(config, s + key) for s in sections for key in _COUNTS}
    return {key: int(value) for key, value in found.items() if isinstance(value, int) and value}


def without_drafts(
    config: Mapping[str, Any], layout: MoeLayout, *, there_were: bool
) -> dict[str, Any]:
    """Return the config with a count of no draft layers, under every key that says otherwise.

    :param there_were: whether the files had draft layers: then the family's key is written even
        where the config was silent, as readers may assume one
    """
    promised = promised_drafts(config, layout)
    found = with_own_counts(config, layout, None)
    for key, count in promised.items():
        found = _shortened(with_value(found, key, 0), layout, count)
    if there_were and layout.mtp_layer is not None:
        top = layout.section is None or layout.mtp_key in config
        key = layout.mtp_key if top else f"{layout.section}.{layout.mtp_key}"
        found = with_value(found, key, 0)
    return found


def own_counts(config: Mapping[str, Any], layout: MoeLayout) -> tuple[int, int] | None:
    """Return (experts, active experts) of draft layers, if they have counts of their own."""
    section = layout.text_config(config).get(SECTION)
    return (int(section[NUM_EXPERTS]), int(section[TOP_K])) if section else None


def with_own_counts(
    config: Mapping[str, Any], layout: MoeLayout, counts: tuple[int, int] | None
) -> dict[str, Any]:
    """Return the config with counts of draft layers' own; without any, if they have none."""
    text = {key: value for key, value in layout.text_config(config).items() if key != SECTION}
    if counts is not None:
        text[SECTION] = dict(zip((NUM_EXPERTS, TOP_K), counts, strict=True))
    return _with_text(config, layout, text)


def _shortened(config: Mapping[str, Any], layout: MoeLayout, count: int) -> dict[str, Any]:
    text = dict(layout.text_config(config))
    layers = text.get("num_hidden_layers")
    for key in _LISTS:
        value = text.get(key)
        if isinstance(value, list) and isinstance(layers, int) and len(value) == layers + count:
            text[key] = value[:layers]
    return _with_text(config, layout, text)


def _with_text(
    config: Mapping[str, Any], layout: MoeLayout, text: dict[str, Any]
) -> dict[str, Any]:
    if layout.section is None:
        return text
    there = value_at(config, layout.section) is not None
    return with_value(config, layout.section, text) if there else dict(config)
