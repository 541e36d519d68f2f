"""Tiny models of several families, for routing that Mixtral does not have."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

from vllm_moe_prune.layout import MoeLayout
from vllm_moe_prune.layouts import LAYOUTS

_SIZES: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "vocab_size": 60,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
}


def mixtral() -> Any:
    """Softmax, renormalised."""
    from transformers import MixtralConfig, MixtralForCausalLM

    return MixtralForCausalLM(MixtralConfig(num_hidden_layers=2, num_local_experts=6, **_SIZES))


def mixtral_sliding() -> Any:
    """Softmax, renormalised; attention looks back 5 tokens, by a mask."""
    from transformers import MixtralConfig, MixtralForCausalLM

    config = MixtralConfig(num_hidden_layers=2, num_local_experts=6, sliding_window=5, **_SIZES)
    return MixtralForCausalLM(config)


def qwen3() -> Any:
    """Softmax, not renormalised, top-3; layer 1 of 3 has no experts."""
    from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

    config = Qwen3MoeConfig(
        num_hidden_layers=3,
        num_experts=7,
        num_experts_per_tok=3,
        moe_intermediate_size=24,
        norm_topk_prob=False,
        mlp_only_layers=[1],
        head_dim=16,
        **_SIZES,
    )
    return Qwen3MoeForCausalLM(config)


def deepseek() -> Any:
    """Sigmoid with correction bias, groups and a scaling factor; layer 0 has no experts."""
    from transformers import DeepseekV3Config, DeepseekV3ForCausalLM

    config = DeepseekV3Config(
        num_hidden_layers=3,
        first_k_dense_replace=1,
        n_routed_experts=8,
        num_experts_per_tok=2,
        n_group=4,
        topk_group=2,
        n_shared_experts=1,
        moe_intermediate_size=24,
        routed_scaling_factor=2.5,
        q_lora_rank=None,
        kv_lora_rank=16,
        qk_nope_head_dim=8,
        qk_rope_head_dim=8,
        v_head_dim=16,
        **_SIZES,
    )
    model = DeepseekV3ForCausalLM(config)
    for name, buffer in model.named_buffers():
        if name.endswith("e_score_correction_bias"):
            torch.nn.init.normal_(buffer, std=0.5)
    return model


def llama4() -> Any:
    """Sigmoid of the chosen, top-2, on the inputs; layer 0 of 3 has no experts, 1 no positions."""
    from transformers import Llama4ForCausalLM, Llama4TextConfig

    config = Llama4TextConfig(
        num_hidden_layers=3,
        moe_layers=[1, 2],
        no_rope_layers=[1, 0, 1],
        num_local_experts=6,
        num_experts_per_tok=2,
        intermediate_size_mlp=40,
        head_dim=16,
        **_SIZES,
    )
    return Llama4ForCausalLM(config)


FAMILIES: dict[str, tuple[Callable[[], Any], int]] = {  # maker and k
    "mixtral": (mixtral, 2),
    "mixtral_sliding": (mixtral_sliding, 2),
    "qwen3": (qwen3, 3),
    "deepseek": (deepseek, 2),
    "llama4": (llama4, 2),
}


def make(name: str, dtype: torch.dtype = torch.float64) -> tuple[Any, MoeLayout]:
    """Return a random model, the same each time, and a layout with its way of routing."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = FAMILIES[name][0]().eval().to(dtype)
        if dtype == torch.float64:  # which torch's grouped matrix product does not know
            model.set_experts_implementation("eager")
        with torch.no_grad():
            for weight in model.parameters():
                if weight.dim() > 1:
                    weight.normal_(std=1.5 / weight.shape[-1] ** 0.5)
    if name == "llama4":
        return model, LAYOUTS["llama4_text"]
    score = "sigmoid" if name == "deepseek" else "softmax"
    return model, replace(LAYOUTS["mixtral"], score=score)
