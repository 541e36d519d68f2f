"""Families whose block is called ``block_sparse_moe`` or ``feed_forward``, as Mixtral's is."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from vllm_moe_prune.families.parts import (
    BIAS,
    FORWARD,
    MIXTRAL_PROJECTIONS,
    MLP,
    SPARSE,
    both,
    dense,
    one_by_one,
    wrapped,
)
from vllm_moe_prune.form import Form
from vllm_moe_prune.layout import MoeLayout


def _mixtral(
    model_type: str, *, rows: tuple[str, ...] = (), gate: str = "gate.weight", **more: Any
) -> MoeLayout:
    """Mixtral's names.

    :param rows: what has an entry per expert beside the gate
    :param gate: the router as transformers calls it
    """
    form = one_by_one(
        SPARSE, projections=MIXTRAL_PROJECTIONS, rows=tuple(SPARSE + one for one in rows)
    )
    inside = form.in_transformers(
        MLP, blocks=(MLP,), router=MLP + gate, rows=tuple(MLP + one for one in rows)
    )
    return MoeLayout(model_type, (form, inside), num_experts_key="num_local_experts", **more)


_GRANITE_STACKED = Form(
    router=SPARSE + "router.layer.weight",
    blocks=(SPARSE,),
    stacked=(SPARSE + "input_linear.weight", SPARSE + "output_linear.weight"),
)
_GRANITE = MoeLayout(
    "granitemoe",
    (
        _GRANITE_STACKED,
        _GRANITE_STACKED.in_transformers(router=SPARSE + "router.weight"),
        # as quantisers write it
        one_by_one(SPARSE, "router.layer.weight", ("input_linear", "output_linear")),
    ),
    num_experts_key="num_local_experts",
)
_LLAMA4 = MoeLayout(
    "llama4_text",
    (
        Form(
            router=FORWARD + "router.weight",
            blocks=(FORWARD,),
            stacked=(FORWARD + "experts.gate_up_proj", FORWARD + "experts.down_proj"),
            beside=(FORWARD + "shared_expert.", *dense(FORWARD)),
        ),
        one_by_one(FORWARD, "router.weight", beside=(FORWARD + "shared_expert.", *dense(FORWARD))),
    ),
    num_experts_key="num_local_experts",
    score="sigmoid",
    renormalise=False,
    weights_on_input=True,
    vllm_module="llama4",
    vllm_layers_module="llama",
)
_KIMI_BESIDE = (SPARSE + "shared_experts.", *dense(SPARSE))
_KIMI_LINEAR = MoeLayout(
    "kimi_linear",
    both(
        one_by_one(
            SPARSE,
            projections=MIXTRAL_PROJECTIONS,
            rows=(f"{SPARSE}gate.{BIAS}",),
            beside=_KIMI_BESIDE,
        ),
        block=MLP,
        blocks=(MLP,),
        router=MLP + "gate.weight",
        rows=(f"{MLP}gate.{BIAS}",),
        beside=(MLP + "shared_experts.", *dense(MLP)),
    ),
    num_experts_key="num_experts",
    top_k_key="num_experts_per_token",
    score="sigmoid",
    renormalise_key="moe_renormalize",
    num_groups_key="num_expert_group",
    mappable=False,
    vllm_module="vllm.models.kimi_k3:KimiLinearForCausalLM",
)
_LFM2 = MoeLayout(
    "lfm2_moe",
    both(
        one_by_one(
            FORWARD,
            projections=MIXTRAL_PROJECTIONS,
            rows=(FORWARD + "expert_bias",),
            beside=dense(FORWARD, MIXTRAL_PROJECTIONS),
        )
    ),
    num_experts_key="num_experts",
    score="sigmoid",
    renormalise_key="norm_topk_prob",
    mappable=False,
    torch_rotary=True,
)
_JAMBA = MoeLayout(
    "jamba",
    both(one_by_one(FORWARD, "router.weight", beside=dense(FORWARD))),
    num_experts_key="num_experts",
    renormalise=False,
)
_MINIMAX_M3 = MoeLayout(
    "minimax_m3_vl_text",
    both(
        one_by_one(
            SPARSE,
            projections=MIXTRAL_PROJECTIONS,
            rows=(SPARSE + BIAS,),
            beside=(SPARSE + "shared_experts.",),
        ),
        block=MLP,
        blocks=(MLP,),
        router=MLP + "gate.weight",
        rows=(f"{MLP}gate.{BIAS}",),
        beside=(MLP + "shared_experts.", *dense(MLP), MLP + "gate_up_proj."),
    ),
    num_experts_key="num_local_experts",
    score="sigmoid",
    mappable=False,
    mtp_layer="model.mtp.layers.{layer}.transformer_layer.",
    mtp_prefix="model.mtp.",
    mtp_key="num_mtp_modules",
    vllm_module="vllm.models.minimax_m3:MiniMaxM3SparseForCausalLM",
)
_DBRX = MoeLayout(
    "dbrx",
    (
        Form(
            router="ffn.router.layer.weight",
            blocks=("ffn.",),
            stacked=("ffn.experts.mlp.w1", "ffn.experts.mlp.v1", "ffn.experts.mlp.w2"),
            flat=True,
        ),
    ),
    layer="transformer.blocks.{layer}.",
    num_experts_key="ffn_config.moe_num_experts",
    top_k_key="ffn_config.moe_top_k",
)
FAMILIES = (
    _mixtral("mixtral"),
    # its router is a sparse mixer, not a top-k
    _mixtral("phimoe", gate="router.weight", mappable=False),
    _mixtral("minimax_m2", rows=(BIAS,), score="sigmoid", mappable=False),
    _MINIMAX_M3,
    wrapped(_MINIMAX_M3, "minimax_m3_vl", "language_model.model."),
    _GRANITE,
    replace(
        _GRANITE,
        model_type="granitemoeshared",
        vllm_module="granitemoe",
        vllm_layers_module="granitemoeshared",
    ),
    replace(
        _GRANITE,
        model_type="granitemoehybrid",
        vllm_module="granitemoe",
        vllm_layers_module="granitemoehybrid",
    ),
    _LLAMA4,
    wrapped(_LLAMA4, "llama4", "language_model.model."),
    _KIMI_LINEAR,
    _LFM2,
    _JAMBA,
    _DBRX,
)
