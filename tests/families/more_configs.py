"""What the configs of the families that came last need to be tiny; see models.py."""

from __future__ import annotations

from typing import Any

EXPERTS = 8
_ONE_GROUP: dict[str, Any] = {"n_group": 1, "topk_group": 1}
_ROUTED: dict[str, Any] = {
    "n_routed_experts": EXPERTS,
    "n_shared_experts": 1,
    "moe_intermediate_size": 32,
    "first_k_dense_replace": 1,
    **_ONE_GROUP,
}
_MLA: dict[str, Any] = {
    **_ROUTED,
    "q_lora_rank": 32,
    "kv_lora_rank": 512,  # vLLM attends on a CPU with the sizes of the real models only
    "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64,
    "v_head_dim": 128,
    "routed_scaling_factor": 2.5,
}
_WHOLE = {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 1.0}
_SPARSE = ["dense", "sparse", "sparse"]
_QWEN3: dict[str, Any] = {
    "num_experts": EXPERTS,
    "moe_intermediate_size": 32,
    "head_dim": 32,
    "norm_topk_prob": True,
    # of three kinds of positions, which text has alike
    "rope_parameters": {
        "rope_type": "default",
        "rope_theta": 1e4,
        "mrope_section": [4, 6, 6],
        "mrope_interleaved": True,
    },
}
_MINIMAX_M3: dict[str, Any] = {
    "num_local_experts": EXPERTS,
    "head_dim": 32,
    "rotary_dim": 16,
    "intermediate_size": 32,
    "dense_intermediate_size": 96,
    "shared_intermediate_size": 32,
    "mlp_layer_types": _SPARSE,
    "layer_types": ["full_attention"] * 3,
}
_STEP: dict[str, Any] = {
    "n_routed_experts": EXPERTS,
    "moe_intermediate_size": 32,
    "share_expert_dim": 32,
    "head_dim": 32,
    "sliding_window": 64,
    "mlp_layer_types": _SPARSE,
    "layer_types": ["full_attention"] * 3,
}
_GEMMA4: dict[str, Any] = {
    "enable_moe_block": True,
    "num_experts": EXPERTS,
    "top_k_experts": 2,
    "moe_intermediate_size": 32,
    "head_dim": 32,
    "global_head_dim": 32,
    "hidden_size_per_layer_input": 0,
}
MORE: dict[str, dict[str, Any]] = {
    "axk1": _MLA,
    # saved as DeepSeek-V3's, which it is
    "kimi_k2": {**_MLA, "topk_method": "noaux_tc", "scoring_func": "sigmoid"},
    "kimi_k25": {
        **_MLA,
        "model_type": "deepseek_v3",
        "topk_method": "noaux_tc",
        "scoring_func": "sigmoid",
    },
    "kimi_linear": {
        **_MLA,
        "q_lora_rank": None,
        "num_experts": EXPERTS,
        "mlp_layer_types": _SPARSE,
        "layer_types": ["linear_attention", "full_attention", "linear_attention"],
        "linear_head_dim": 32,
        "linear_num_heads": 2,
    },
    "jamba": {
        "num_experts": EXPERTS,
        "expert_layer_period": 1,
        "expert_layer_offset": 0,
        "attn_layer_period": 2,
        "attn_layer_offset": 1,
        "mamba_dt_rank": 4,
    },
    "nemotron_h": {
        **_ROUTED,
        "head_dim": 32,
        "moe_shared_expert_intermediate_size": 32,
        "routed_scaling_factor": 2.5,
        "layers_block_type": ["moe", "linear_attention", "moe", "full_attention"],
        "num_hidden_layers": 4,
        "ssm_state_size": 16,
        "mamba_num_heads": 4,
        "mamba_head_dim": 32,
        "n_groups": 1,
    },
    "mimo_v2_flash": {
        **_ROUTED,
        "num_key_value_heads": 1,
        "head_dim": 64,
        "v_head_dim": 32,
        "layer_types": ["full_attention"] * 3,
        "rope_parameters": dict.fromkeys(("full_attention", "sliding_attention"), _WHOLE),
        # For vLLM; transformers has other words for them.
        "hybrid_layer_pattern": [0, 0, 0],
        "moe_layer_freq": [0, 1, 1],
        "layernorm_epsilon": 1e-5,
        "rope_theta": 1e4,
        "topk_method": "noaux_tc",
        "scoring_func": "sigmoid",
    },
    "minimax_m3_vl_text": _MINIMAX_M3,
    "minimax_m3_vl": _MINIMAX_M3,
    # No square matrices: transformers tells by their shapes which way round they are.
    "qwen3_vl_moe": {**_QWEN3, "moe_intermediate_size": 96},
    "glm4v_moe": {
        **_ROUTED,
        "head_dim": 32,
        "use_qk_norm": False,  # for vLLM
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 1e4,
            "mrope_section": [2, 3, 3],
            "partial_rotary_factor": 0.5,
        },
    },
    "step3p7": _STEP,
    "gemma4_text": _GEMMA4,
    "gemma4": _GEMMA4,
}
# Of a checkpoint of which transformers reads a part alone.
THINKER: dict[str, Any] = {**_QWEN3, "moe_intermediate_size": 96, "tie_word_embeddings": False}
# Decoder layers without experts.
MORE_DENSE: dict[str, tuple[int, ...]] = {
    **dict.fromkeys(("axk1", "kimi_k2", "kimi_k25", "kimi_linear", "glm4v_moe", "step3p7"), (0,)),
    **dict.fromkeys(("minimax_m3_vl_text", "minimax_m3_vl"), (0,)),
    "nemotron_h": (1, 3),
}
_QWEN_VISION: dict[str, Any] = {
    "hidden_size": 32,
    "depth": 2,
    "num_heads": 2,
    "intermediate_size": 64,
    "out_hidden_size": 64,
    "patch_size": 14,
    "num_position_embeddings": 16,
}
# Beside a language model that is only a section of the config.
VISIONS: dict[str, dict[str, Any]] = {
    "llama4": {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 128,
        "vision_output_dim": 32,
        "projector_input_dim": 32,
        "projector_output_dim": 32,
        "image_size": 28,
        "patch_size": 14,
    },
    "qwen3_5_moe": _QWEN_VISION,
    "qwen4_exp": _QWEN_VISION,
    "qwen3_vl_moe": {**_QWEN_VISION, "deepstack_visual_indexes": [0]},
    "qwen3_omni_moe_thinker": {
        **{**_QWEN_VISION, "deepstack_visual_indexes": [0]},
        **{"image_size": 56, "apply_vit_abs_pos_embed": True},  # for vLLM
    },
    "glm4v_moe": {
        "hidden_size": 32,
        "depth": 2,
        "num_heads": 2,
        "intermediate_size": 64,
        "out_hidden_size": 64,
        "image_size": 28,
    },
    "kimi_k25": {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 64,
        "pos_emb_height": 4,
        "pos_emb_width": 4,
    },
    "step3p7": {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": 28,
        "mlp_ratio": 2.0,
    },
    "minimax_m3_vl": {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 64,
        "img_token_compression_config": {},  # for vLLM
    },
    "gemma4": {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "intermediate_size": 64,
        "position_embedding_size": 16,
    },
}
AUDIO: dict[str, Any] = {
    **{"encoder_layers": 1, "encoder_attention_heads": 2, "encoder_ffn_dim": 64, "d_model": 32},
    **{"output_dim": 64, "downsample_hidden_size": 32},
}
_SIZES: dict[str, Any] = {"hidden_size": 64, "num_attention_heads": 2, "vocab_size": 60}
# Models that are not scored by transformers, and what is said.
UNREAD: dict[str, tuple[dict[str, Any], str]] = {
    "dbrx": (
        {
            **{"d_model": 64, "n_heads": 2, "n_layers": 2, "vocab_size": 60},
            "attn_config": {"kv_n_heads": 2, "rope_theta": 1e4},
            "ffn_config": {
                **{"hidden_size": 64, "ffn_hidden_size": 32},
                **{"moe_num_experts": EXPERTS, "moe_top_k": 2},
            },
        },
        "found no fused experts in this dbrx model",
    ),
    "longcat_flash": (
        {
            **_SIZES,
            **{"num_layers": 2, "num_hidden_layers": 4, "q_lora_rank": 32, "moe_topk": 2},
            **{"n_routed_experts": EXPERTS, "zero_expert_num": 4, "ffn_hidden_size": 96},
            **{"expert_ffn_hidden_size": 32, "kv_lora_rank": 512, "max_position_embeddings": 128},
            **{"qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "v_head_dim": 128},
        },
        "routers of longcat_flash choose zero experts, too, which show nothing",
    ),
    "deepseek_v4": (
        {
            **_SIZES,
            **{"num_hidden_layers": 3, "num_key_value_heads": 1, "head_dim": 64, "hc_mult": 2},
            **{"n_routed_experts": EXPERTS, "num_experts_per_tok": 2, "moe_intermediate_size": 32},
            **{"q_lora_rank": 32, "o_groups": 2, "o_lora_rank": 32},
            "mlp_layer_types": ["hash_moe", "moe", "moe"],
            **{"layer_types": ["sliding_attention"] * 3, "max_position_embeddings": 128},
        },
        "the layers of this model are given the tokens, too: not to be taken one by one",
    ),
}
