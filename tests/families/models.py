"""Tiny random models of every family that transformers has, saved as transformers saves them.

A new family is one entry of ``CONFIGS``: what its config needs beyond ``_SIZES``.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.families.as_released import as_transformers, release
from tests.families.more_configs import AUDIO, EXPERTS, MORE, MORE_DENSE, THINKER, UNREAD, VISIONS
from vllm_moe_prune.layouts import LAYOUTS

_SIZES: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "vocab_size": 60,
    "max_position_embeddings": 128,
    "num_experts_per_tok": 2,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_MLA: dict[str, Any] = {
    "n_routed_experts": EXPERTS,
    "n_shared_experts": 1,
    "moe_intermediate_size": 32,
    "first_k_dense_replace": 1,
    "q_lora_rank": None,
    "kv_lora_rank": 512,  # vLLM attends on a CPU with the sizes of the real models only
    "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64,
    "v_head_dim": 128,
    "routed_scaling_factor": 2.5,
}
_ONE_GROUP: dict[str, Any] = {"n_group": 1, "topk_group": 1}
_LLAMA4: dict[str, Any] = {
    "num_local_experts": EXPERTS,
    "num_experts_per_tok": 1,  # vLLM weighs inputs of a single expert only
    "intermediate_size_mlp": 96,
    "head_dim": 32,
    "no_rope_layers": [1, 0, 1],
}
CONFIGS: dict[str, dict[str, Any]] = {
    "mixtral": {"num_local_experts": EXPERTS},
    "phimoe": {"num_local_experts": EXPERTS, "attention_bias": True, "lm_head_bias": True},
    "qwen2_moe": {
        "num_experts": EXPERTS,
        "moe_intermediate_size": 32,
        "shared_expert_intermediate_size": 32,
        "mlp_only_layers": [1],
        "norm_topk_prob": False,
    },
    "qwen3_moe": {
        "num_experts": EXPERTS,
        "moe_intermediate_size": 32,
        "head_dim": 32,
        "mlp_only_layers": [1],
        "norm_topk_prob": True,
    },
    "qwen3_next": {
        "num_experts": EXPERTS,
        "moe_intermediate_size": 32,
        "shared_expert_intermediate_size": 32,
        "head_dim": 32,
        "linear_num_value_heads": 2,
        "linear_num_key_heads": 2,
        "linear_key_head_dim": 128,
        "linear_value_head_dim": 128,
        "full_attention_interval": 3,  # of the three layers the last one
    },
    "olmoe": {"num_experts": EXPERTS, "norm_topk_prob": False},
    "deepseek_v2": {**_MLA, **_ONE_GROUP, "topk_method": "greedy"},
    "deepseek_v3": {
        **_MLA,
        "n_group": 2,
        "topk_group": 1,
        # For vLLM; transformers has no other.
        "topk_method": "noaux_tc",
        "scoring_func": "sigmoid",
    },
    "glm4_moe": {
        "n_routed_experts": EXPERTS,
        "n_shared_experts": 1,
        "moe_intermediate_size": 32,
        "first_k_dense_replace": 1,
        "head_dim": 32,
        **_ONE_GROUP,
    },
    "ernie4_5_moe": {
        "moe_num_experts": EXPERTS,
        "moe_k": 2,
        "moe_intermediate_size": 32,
        "moe_num_shared_experts": 1,
        "moe_layer_start_index": 1,
    },
    # An intermediate size that two ranks can share: vLLM wants multiples of 32 for biased experts.
    "gpt_oss": {"num_local_experts": EXPERTS, "head_dim": 32, "intermediate_size": 128},
    "granitemoe": {"num_local_experts": EXPERTS},
    "llama4_text": _LLAMA4,
    "llama4": _LLAMA4,
}
# Their tests run with the others; those of families below are slow ones.
ALWAYS = tuple(CONFIGS)
_EXPERTS: dict[str, Any] = {"num_experts": EXPERTS, "moe_intermediate_size": 32, "head_dim": 32}
_ROUTED: dict[str, Any] = {
    "n_routed_experts": EXPERTS,
    "n_shared_experts": 1,
    "moe_intermediate_size": 32,
    "first_k_dense_replace": 1,
    "head_dim": 32,
    **_ONE_GROUP,
}
_INDEXED: dict[str, Any] = {  # attention that chooses what it attends to
    **_MLA,
    **_ONE_GROUP,
    "q_lora_rank": 32,
    "index_topk": 64,
    "index_head_dim": 128,
    "index_n_heads": 2,
}
_DELTA = CONFIGS["qwen3_next"]
_MAMBA: dict[str, Any] = {
    "num_local_experts": EXPERTS,
    "shared_intermediate_size": 32,
    "layer_types": ["mamba", "attention", "mamba"],
    "mamba_n_heads": 4,
    "mamba_d_head": 32,
    "mamba_d_state": 16,
}
CONFIGS |= {
    "qwen3_5_moe_text": _DELTA,
    "qwen3_5_moe": _DELTA,
    "qwen4_exp_text": {
        **_DELTA,
        "indexer_n_heads": 2,
        "indexer_kv_heads": 1,
        "indexer_head_dim": 32,
        "indexer_budget": 64,
        "indexer_compress_ratio": 4,
    },
    "minimax_m2": {
        "num_local_experts": EXPERTS,
        "head_dim": 32,
        # For vLLM; transformers has no other.
        "rotary_dim": 32,
        "scoring_func": "sigmoid",
        "use_routing_bias": True,
    },
    "glm4_moe_lite": {**_MLA, **_ONE_GROUP},
    "glm_moe_dsa": _INDEXED,
    "deepseek_v32": _INDEXED,
    "granitemoehybrid": _MAMBA,
    "granitemoeshared": {"num_local_experts": EXPERTS, "shared_intermediate_size": 32},
    "lfm2_moe": {
        **_EXPERTS,
        "num_dense_layers": 1,
        "layer_types": ["conv", "full_attention", "conv"],
    },
    "hy_v3": {
        **_EXPERTS,
        "num_shared_experts": 1,
        # For vLLM; transformers has other words for them.
        "first_k_dense_replace": 1,
        "expert_hidden_dim": 32,
        "route_norm": True,
        "qk_norm": True,
    },
    "exaone_moe": {**_EXPERTS, "num_shared_experts": 1, "first_k_dense_replace": 1},
    "solar_open": _ROUTED,
    "dots1": _ROUTED,
    "flex_olmo": {"num_experts": EXPERTS, "norm_topk_prob": False},
    "mellum": _EXPERTS,
    "afmoe": {
        **_EXPERTS,
        **_ONE_GROUP,
        "num_dense_layers": 1,
        "num_shared_experts": 1,
        # For vLLM; transformers has no other.
        "score_func": "sigmoid",
        "route_norm": True,
        "qk_norm": True,
    },
    "laguna": {**_EXPERTS, "shared_expert_intermediate_size": 32},
    "hunyuan_v1_moe": {"num_experts": EXPERTS, "head_dim": 32, "moe_topk": 2},
    **MORE,
}
CONFIGS["qwen4_exp"] = CONFIGS["qwen4_exp_text"]
# What its config says beside its sections.
_WHOLE: dict[str, dict[str, Any]] = {
    "kimi_k25": {"tie_word_embeddings": False},
    "qwen3_omni_moe": {"audio_config": AUDIO},
}
# What transformers calls a family that it knows under another name, or as a part of another.
_KNOWN_AS = {"kimi_k2": "deepseek_v3", "step3p5": "step3p7"}
_KNOWN_AS |= {"qwen3_omni_moe": "qwen3_omni_moe_thinker"}
FAMILIES = [
    pytest.param(family, marks=() if family in ALWAYS else pytest.mark.slow)
    for family in sorted(CONFIGS)
]
# Families of which vLLM is asked, too: transformers reads them in part, or as a part of others.
READ_IN_PART = (*UNREAD, "step3p5")
SERVED = [
    *FAMILIES,
    *(pytest.param(one, marks=pytest.mark.slow) for one in (*READ_IN_PART, "qwen3_omni_moe")),
]
# Decoder layers without experts; of other families all three have them.
DENSE: dict[str, tuple[int, ...]] = {
    **dict.fromkeys(("qwen2_moe", "qwen3_moe"), (1,)),
    **dict.fromkeys(("deepseek_v2", "deepseek_v3", "glm4_moe", "ernie4_5_moe"), (0,)),
    **dict.fromkeys(("glm4_moe_lite", "glm_moe_dsa", "deepseek_v32", "mimo_v2_flash"), (0,)),
    **dict.fromkeys(("exaone_moe", "dots1", "afmoe", "laguna", "lfm2_moe", "hy_v3"), (0,)),
    **MORE_DENSE,
}
# Biases that stay as transformers makes them.
_OWN = ("mamba.dt_bias", "mixer.dt_bias")
# What only chooses experts.
CHOOSING = ("correction_bias", "expert_bias", "router_bias")


def load(folder: Path, dtype: torch.dtype = torch.float32) -> Any:
    """Return the model in a folder as transformers has it: with what is beside it, if need be."""
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText

    folder = as_transformers(folder)
    fields = json.loads((folder / "config.json").read_text())
    if known := _KNOWN_AS.get(fields["model_type"]):
        config = AutoConfig.for_model(
            known, **{k: v for k, v in fields.items() if k != "model_type"}
        )
    else:
        config = AutoConfig.from_pretrained(folder)
    auto: Any = AutoModelForCausalLM
    if type(config) not in auto._model_mapping:
        auto = AutoModelForImageTextToText
    return auto.from_pretrained(folder, config=config, dtype=dtype).eval()


def make_family(family: str, folder: Path, *, correction: float = 0.3, **more: Any) -> Path:
    """Write a random checkpoint of a family into ``folder`` and return it.

    :param correction: standard deviation of the biases that only choose
    """
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText

    known = _KNOWN_AS.get(family, family)
    needs = (CONFIGS | {"qwen3_omni_moe": THINKER}).get(family) or CONFIGS.get(known, {})
    own = UNREAD[family][0] if family in UNREAD else _SIZES | needs
    sizes = {**own, **more}
    if family == "ernie4_5_moe":
        del sizes["num_experts_per_tok"]  # it has a name of its own
    auto: Any = AutoModelForCausalLM
    if section := "text_config" if known not in LAYOUTS else LAYOUTS[known].section:
        sizes = {section: sizes, "vision_config": VISIONS[known], **_WHOLE.get(family, {})}
        auto = AutoModelForImageTextToText
    config = AutoConfig.for_model(known, **sizes)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = auto.from_config(config).eval().float()
        with torch.no_grad():
            for name, weight in (*model.named_parameters(), *model.named_buffers()):
                if any(one in name for one in CHOOSING):
                    weight.normal_(std=correction)
                elif name == "lm_head.bias":
                    weight.zero_()  # vLLM does not add Phi-MoE's
                elif name.endswith("per_expert_scale"):
                    weight.uniform_(0.5, 1.5)
                elif weight.dim() == 1 and "bias" in name and not name.endswith(_OWN):
                    weight.normal_(std=0.3)
                elif weight.dim() > 1 and weight.is_floating_point():
                    weight.normal_(std=1.5 / weight.shape[-1] ** 0.5)
    model.save_pretrained(folder)
    release(family, folder)
    return folder
