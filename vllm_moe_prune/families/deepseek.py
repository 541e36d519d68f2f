"""Families that choose by sigmoids and a correction bias, as DeepSeek-V3 does, and their kin."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from vllm_moe_prune.families.parts import (
    BIAS,
    MIXTRAL_PROJECTIONS,
    MLP,
    PROJECTIONS,
    both,
    dense,
    one_by_one,
    wrapped,
)
from vllm_moe_prune.form import Form
from vllm_moe_prune.layout import LAYER, MoeLayout


def _deepseek(
    model_type: str,
    num_experts_key: str = "n_routed_experts",
    *,
    rows: tuple[str, ...] = (f"gate.{BIAS}",),
    gate: str = "gate.weight",
    shared: str = "shared_experts.",
    norms: tuple[str, ...] = (),
    inside: dict[str, str] | None = None,
    **more: Any,
) -> MoeLayout:
    """DeepSeek's names.

    :param rows: what has an entry per expert beside the gate
    :param norms: what else transformers has in the block
    :param inside: names that transformers has in place of these
    """
    form = one_by_one(
        MLP, gate, rows=tuple(MLP + one for one in rows), beside=(MLP + shared, *dense(MLP))
    )
    moved = inside or {}
    changes: dict[str, Any] = {
        "router": MLP + moved.get(gate, gate),
        "rows": tuple(MLP + moved.get(one, one) for one in rows),
        "beside": (MLP + moved.get(shared, shared), *dense(MLP), *(MLP + one for one in norms)),
    }
    fields: dict[str, Any] = {
        "renormalise_key": "norm_topk_prob",
        "num_groups_key": "n_group",
        "score": "sigmoid",
        "mappable": False,
    }
    return MoeLayout(
        model_type, both(form, **changes), num_experts_key=num_experts_key, **(fields | more)
    )


_NUMBERED: dict[str, Any] = {"mtp_layer": LAYER}  # draft layers are numbered on
_BESIDE: dict[str, Any] = {"mtp_layer": "mtp.layers.{layer}.", "mtp_prefix": "mtp."}
_V3 = _deepseek("deepseek_v3", vllm_module="deepseek_v2", **_NUMBERED)
_DSA: dict[str, Any] = {
    "vllm_module": "deepseek_v2",
    "vllm_layers_module": "vllm.models.deepseek_v32:DeepseekV32ForCausalLM",
    **_NUMBERED,
}
_GLM4V = _deepseek("glm4v_moe_text", vllm_module="glm4_moe", **_NUMBERED)
_INSIDE_MLP = {BIAS: f"gate.{BIAS}"}
_NEMOTRON = Form(
    router="mixer.gate.weight",
    # the mixers of other layers are attention and state spaces
    blocks=("mixer.experts.", "mixer.gate."),
    expert="mixer.experts.{expert}.{projection}.{part}",
    projections=("up_proj", "down_proj"),
    rows=(f"mixer.gate.{BIAS}",),
)
_STEP_STACKED = Form(
    router="moe.gate.weight",
    blocks=("moe.",),
    stacked=tuple(f"moe.{name}.{{part}}" for name in PROJECTIONS),
    rows=("moe.router_bias",),
)
_STEP = MoeLayout(
    "step3p5",
    (
        _STEP_STACKED,
        one_by_one("moe.", rows=("moe.router_bias",)),
        _STEP_STACKED.in_transformers(
            MLP,
            router=MLP + "gate.weight",
            blocks=(MLP,),
            rows=(f"{MLP}gate.{BIAS}",),
            beside=(MLP + "shared_experts.", *dense(MLP)),
        ),
    ),
    num_experts_key="moe_num_experts",
    num_experts_aliases=("num_experts",),
    top_k_key="moe_top_k",
    top_k_aliases=("num_experts_per_tok",),
    score="sigmoid",
    renormalise_key="norm_expert_weight",
    mappable=False,
    **_NUMBERED,
)
_V4_FORM = Form(
    router="ffn.gate.weight",
    blocks=("ffn.",),
    expert="ffn.experts.{expert}.{projection}.{part}",
    projections=MIXTRAL_PROJECTIONS,
    rows=("ffn.gate.bias", f"ffn.gate.{BIAS}"),
    tables=("ffn.gate.tid2eid",),
    beside=("ffn.shared_experts.",),
)
_V4_INSIDE = replace(
    _V4_FORM.in_transformers(MLP),
    router=MLP + "gate.weight",
    blocks=(MLP,),
    rows=(f"{MLP}gate.{BIAS}",),
    tables=(MLP + "gate.tid2eid",),
    beside=(MLP + "shared_experts.",),
)
FAMILIES = (
    _deepseek("deepseek_v2", rows=(), renormalise=False, score="softmax", mappable=True),
    _V3,
    replace(_V3, model_type="kimi_k2"),
    wrapped(_V3, "kimi_k25", "language_model.model."),
    _deepseek("deepseek_v32", **_DSA),
    _deepseek("glm_moe_dsa", **_DSA),
    _deepseek("glm4_moe", **_NUMBERED),
    _deepseek(
        "glm4_moe_lite", vllm_module="glm4_moe", vllm_layers_module="glm4_moe_lite", **_NUMBERED
    ),
    _GLM4V,
    wrapped(_GLM4V, "glm4v_moe"),
    _deepseek("dots1"),
    _deepseek("solar_open"),
    _deepseek("axk1", norms=("post_mlp_layernorm.",), vllm_module="AXK1"),
    _deepseek(
        "mimo_v2_flash",
        vllm_module="mimo_v2",
        mtp_layer="model.mtp.layers.{layer}.",
        mtp_prefix="model.mtp.",
    ),
    _deepseek("exaone_moe", "num_experts", rows=(BIAS,), inside=_INSIDE_MLP, **_BESIDE),
    _deepseek(
        "hy_v3",
        "num_experts",
        gate="router.gate.weight",
        rows=("expert_bias",),
        shared="shared_mlp.",
        inside={
            "router.gate.weight": "gate.weight",
            "expert_bias": BIAS,
            "shared_mlp.": "shared_experts.",
        },
        renormalise_key="route_norm",
        num_groups_key=None,
        **_NUMBERED,
    ),
    _deepseek(
        "afmoe",
        "num_experts",
        gate="router.gate.weight",
        rows=("expert_bias",),
        renormalise_key="route_norm",
    ),
    _deepseek(
        "laguna",
        "num_experts",
        rows=(f"experts.{BIAS}",),
        shared="shared_expert.",
        inside={f"experts.{BIAS}": f"gate.{BIAS}", "shared_expert.": "shared_experts."},
        num_groups_key=None,
    ),
    _deepseek(
        "bailing_moe_v2",
        "num_experts",
        rows=("gate.expert_bias",),
        vllm_module="bailing_moe",
        **_NUMBERED,
    ),
    MoeLayout(
        "nemotron_h",
        (
            _NEMOTRON,
            replace(
                _NEMOTRON,
                expert=None,
                projections=(),
                stacked=("mixer.experts.up_proj", "mixer.experts.down_proj"),
            ),
        ),
        layer="backbone.layers.{layer}.",
        num_experts_key="n_routed_experts",
        score="sigmoid",
        renormalise_key="norm_topk_prob",
        num_groups_key="n_group",
        mappable=False,
        **_BESIDE,
    ),
    _STEP,
    wrapped(_STEP, "step3p7", "model."),
    MoeLayout(
        "deepseek_v4",
        (_V4_FORM, _V4_INSIDE),
        layer="layers.{layer}.",
        num_experts_key="n_routed_experts",
        score="sqrtsoftplus",
        renormalise_key="norm_topk_prob",
        mappable=False,
        vllm_module="vllm.models.deepseek_v4:DeepseekV4ForCausalLM",
        mtp_layer="mtp.{layer}.",
        mtp_prefix="mtp.",
    ),
)
