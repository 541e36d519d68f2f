"""`LAYOUTS`: the families that there are, as data.

Adding a family is one entry of ``_FAMILIES``; no code asks for a model type.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from vllm_moe_prune.errors import PruneError
from vllm_moe_prune.layout import LAYER, MoeLayout

_MLP = LAYER + "mlp."
_SPARSE = LAYER + "block_sparse_moe."
_PROJECTIONS = ("gate_proj", "up_proj", "down_proj")
_DENSE = tuple(f"{projection}." for projection in _PROJECTIONS)  # of layers without experts


def _mixtral(model_type: str, **more: Any) -> MoeLayout:
    return MoeLayout(
        model_type,
        _SPARSE,
        router=_SPARSE + "gate.weight",
        num_experts_key="num_local_experts",
        expert=_SPARSE + "experts.{expert}.{projection}.{part}",
        projections=("w1", "w3", "w2"),
        **more,
    )


def _mlp(model_type: str, num_experts_key: str, **more: Any) -> MoeLayout:
    fields: dict[str, Any] = {"beside": _DENSE, "renormalise_key": "norm_topk_prob"}
    return MoeLayout(
        model_type,
        _MLP,
        router=_MLP + "gate.weight",
        num_experts_key=num_experts_key,
        expert=_MLP + "experts.{expert}.{projection}.{part}",
        projections=_PROJECTIONS,
        **(fields | more),
    )


def _deepseek(model_type: str, **more: Any) -> MoeLayout:
    return _mlp(
        model_type,
        "n_routed_experts",
        beside=("shared_experts.", *_DENSE),
        num_groups_key="n_group",
        **more,
    )


_BIASED: Mapping[str, Any] = {
    "score": "sigmoid",
    "router_rows": (_MLP + "gate.e_score_correction_bias",),
    "mappable": False,
    "mtp_layer": LAYER,
}
_LLAMA4 = MoeLayout(
    "llama4_text",
    LAYER + "feed_forward.",
    router=LAYER + "feed_forward.router.weight",
    num_experts_key="num_local_experts",
    stacked=tuple(f"{LAYER}feed_forward.experts.{name}" for name in ("gate_up_proj", "down_proj")),
    beside=("shared_expert.", *_DENSE),
    score="sigmoid",
    renormalise=False,
    weights_on_input=True,
    vllm_module="llama4",
    vllm_layers_module="llama",
)
_FAMILIES = (
    _mixtral("mixtral"),
    _mixtral("phimoe", mappable=False),  # its router is a sparse mixer, not a top-k
    _mlp(
        "qwen2_moe",
        "num_experts",
        renormalise=False,
        beside=("shared_expert.", "shared_expert_gate.", *_DENSE),
    ),
    # transformers renames the count when it saves a model
    _mlp("qwen3_moe", "num_experts", num_experts_alias="num_local_experts", renormalise=False),
    _mlp(
        "qwen3_next",
        "num_experts",
        beside=("shared_expert.", "shared_expert_gate.", *_DENSE),
        mtp_layer="mtp.layers.{layer}.",
        mtp_prefix="mtp.",
    ),
    _mlp("olmoe", "num_experts", renormalise=False),
    _deepseek("deepseek_v2", renormalise=False),
    _deepseek("deepseek_v3", vllm_module="deepseek_v2", **_BIASED),
    _deepseek("glm4_moe", **_BIASED),
    _mlp(
        "ernie4_5_moe",
        "moe_num_experts",
        top_k_key="moe_k",
        vllm_module="ernie45_moe",
        beside=("shared_experts.", *_DENSE),
        router_rows=(_MLP + "moe_statics.e_score_correction_bias",),
        renormalise_key=None,
        mappable=False,
        mtp_layer="model.mtp_block.{layer}.",
        mtp_prefix="model.mtp_",
    ),
    MoeLayout(
        "gpt_oss",
        _MLP,
        router=_MLP + "router.weight",
        router_rows=(_MLP + "router.bias",),
        num_experts_key="num_local_experts",
        stacked=tuple(
            f"{_MLP}experts.{name}"
            for name in ("gate_up_proj", "gate_up_proj_bias", "down_proj", "down_proj_bias")
        ),
        interleaved=True,
    ),
    MoeLayout(
        "granitemoe",
        _SPARSE,
        router=_SPARSE + "router.layer.weight",
        num_experts_key="num_local_experts",
        stacked=(_SPARSE + "input_linear.weight", _SPARSE + "output_linear.weight"),
    ),
    _LLAMA4,
    _LLAMA4.renamed(
        "language_model." + LAYER,
        model_type="llama4",
        section="text_config",
        prefix="language_model.",
    ),
)
LAYOUTS: Mapping[str, MoeLayout] = {layout.model_type: layout for layout in _FAMILIES}


def layout_of(config: Mapping[str, Any]) -> MoeLayout:
    """Return the layout for a config.json.

    :raises PruneError: for a family that is not in the table
    """
    model_type = config.get("model_type")
    layout = LAYOUTS.get(str(model_type))
    if layout is None:
        raise PruneError(
            f"model type {model_type!r} is not supported",
            hint=f"supported: {', '.join(sorted(LAYOUTS))}",
        )
    text, alias = layout.text_config(config), layout.num_experts_alias
    if alias and alias in text and layout.num_experts_key not in text:
        layout = replace(layout, num_experts_key=alias, num_experts_alias=None)
    if layout.mtp_layer and not layout.mtp_prefix:
        layout = replace(layout, num_layers=text.get("num_hidden_layers"))
    renormalise = text.get(layout.renormalise_key) if layout.renormalise_key else None
    return layout if renormalise is None else replace(layout, renormalise=bool(renormalise))
