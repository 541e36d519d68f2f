"""Families whose block is called ``mlp`` and chooses by a softmax of the gate, as Qwen's is."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from vllm_moe_prune.families.parts import (
    BIAS,
    MLP,
    PROJECTIONS,
    both,
    dense,
    one_by_one,
    wrapped,
)
from vllm_moe_prune.form import Form
from vllm_moe_prune.layout import MoeLayout


def _mlp(
    model_type: str,
    num_experts_key: str,
    *,
    beside: tuple[str, ...] = (),
    rows: tuple[str, ...] = (),
    gate: str = "gate.weight",
    inside: tuple[str, ...] | None = None,
    **more: Any,
) -> MoeLayout:
    """The names that most families share.

    :param beside: what pruning leaves alone in a block, beside layers without experts
    :param rows: what has an entry per expert beside the gate
    :param inside: what transformers calls the rows, where that is something else
    """
    form = one_by_one(
        MLP,
        gate,
        rows=tuple(MLP + one for one in rows),
        beside=(*(MLP + one for one in beside), *dense(MLP)),
    )
    forms = both(form, rows=tuple(MLP + one for one in (rows if inside is None else inside)))
    fields: dict[str, Any] = {"renormalise_key": "norm_topk_prob"} | more
    return MoeLayout(model_type, forms, num_experts_key=num_experts_key, **fields)


_SHARED_EXPERT = ("shared_expert.", "shared_expert_gate.")
_QWEN3 = _mlp(
    # transformers renames the count when it saves a model
    "qwen3_moe", "num_experts", num_experts_aliases=("num_local_experts",), renormalise=False
)  # fmt: skip
_NEXT: dict[str, Any] = {
    "beside": _SHARED_EXPERT,
    "mtp_layer": "mtp.layers.{layer}.",
    "mtp_prefix": "mtp.",
}
_QWEN3_5 = _mlp(
    "qwen3_5_moe_text",
    "num_experts",
    renormalise_key=None,
    mtp_key="mtp_num_hidden_layers",
    vllm_module="qwen3_next",
    vllm_layers_module="qwen3_5",
    **_NEXT,
)
_QWEN4 = replace(
    _QWEN3_5,
    model_type="qwen4_exp_text",
    renormalise_key="norm_topk_prob",
    vllm_layers_module="vllm.models.qwen4_exp:Qwen4ExpForCausalLM",
)
_QWEN3_VL = _mlp(
    "qwen3_vl_moe_text",
    "num_experts",
    num_experts_aliases=("num_local_experts",),  # as Qwen3's
    vllm_module="qwen3_moe",
)
_ERNIE = _mlp(
    "ernie4_5_moe",
    "moe_num_experts",
    top_k_key="moe_k",
    vllm_module="ernie45_moe",
    beside=("shared_experts.",),
    rows=(f"moe_statics.{BIAS}",),
    inside=(f"gate.moe_statics.{BIAS}",),
    renormalise_key=None,
    mappable=False,
    mtp_layer="model.mtp_block.{layer}.",
    mtp_prefix="model.mtp_",
)
_STACKED_GPT_OSS = Form(
    router=MLP + "router.weight",
    blocks=(MLP,),
    rows=(MLP + "router.bias",),
    stacked=tuple(
        f"{MLP}experts.{name}"
        for name in ("gate_up_proj", "gate_up_proj_bias", "down_proj", "down_proj_bias")
    ),
)
_GPT_OSS = MoeLayout(
    "gpt_oss",
    # the second as quantisers write it
    (_STACKED_GPT_OSS, one_by_one(MLP, "router.weight", rows=(MLP + "router.bias",))),
    num_experts_key="num_local_experts",
    top_k_aliases=("experts_per_token",),
    interleaved=True,
)
_GEMMA4 = MoeLayout(
    "gemma4_text",
    (
        Form(
            router="router.proj.weight",
            blocks=("experts.", "router."),
            stacked=("experts.gate_up_proj", "experts.down_proj"),
            rows=("router.per_expert_scale",),
            beside=("router.scale",),
        ),
        Form(
            router="router.proj.weight",
            blocks=("experts.", "router."),
            expert="experts.{expert}.{projection}.{part}",
            projections=PROJECTIONS,
            rows=("router.per_expert_scale",),
            beside=("router.scale",),
        ),
    ),
    num_experts_key="num_experts",
    top_k_key="top_k_experts",
    # `per_expert_scale` goes by the number of the expert, not by the gate's row
    mappable=False,
    vllm_module="gemma4",
)
_HUNYUAN = _mlp(
    "hunyuan_v1_moe",
    "num_experts",
    top_k_key="moe_topk",
    gate="gate.wg.weight",
    beside=("shared_mlp.",),
    renormalise_key=None,
)
_LONGCAT = _mlp(
    "longcat_flash",
    "n_routed_experts",
    top_k_key="moe_topk",
    gate="router.classifier.weight",
    rows=(f"router.{BIAS}",),
    renormalise=False,
    zero_experts_key="zero_expert_num",
    mappable=False,
    mtp_layer="model.mtp.layers.{layer}.",
    mtp_prefix="model.mtp.",
)
FAMILIES = (
    _mlp("qwen2_moe", "num_experts", renormalise=False, beside=_SHARED_EXPERT),
    _QWEN3,
    _mlp("qwen3_next", "num_experts", **_NEXT),
    _QWEN3_5,
    wrapped(_QWEN3_5, "qwen3_5_moe"),
    _QWEN3_VL,
    wrapped(_QWEN3_VL, "qwen3_vl_moe"),
    wrapped(_QWEN3, "qwen3_omni_moe", "thinker.model.", "thinker_config.text_config"),
    _QWEN4,
    wrapped(_QWEN4, "qwen4_exp"),
    _mlp("olmoe", "num_experts", renormalise=False),
    _mlp("flex_olmo", "num_experts", renormalise=False),
    _mlp("mellum", "num_experts", num_experts_aliases=("num_local_experts",)),
    _ERNIE,
    _GPT_OSS,
    _GEMMA4,
    wrapped(_GEMMA4, "gemma4"),
    _HUNYUAN,
    _LONGCAT,
)
