"""Tiny random models of families that vLLM has and transformers has not, by their tensors' names.

What they are compared with is vLLM's own answer of the unpruned model whose dropped experts a bias
keeps from being chosen.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tests.families.quantised import tensors_of, write
from vllm_moe_prune.checkpoint import Checkpoint

EXPERTS, HIDDEN, WIDE, NARROW, VOCAB, HEAD = 8, 64, 96, 32, 60, 32
_SIZES: dict[str, Any] = {
    "hidden_size": HIDDEN,
    "intermediate_size": WIDE,
    "moe_intermediate_size": NARROW,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": HEAD,
    "vocab_size": VOCAB,
    "max_position_embeddings": 128,
    "rms_norm_eps": 1e-6,
    "hidden_act": "silu",
    "tie_word_embeddings": False,
    "dtype": "float32",
}
CONFIGS: dict[str, dict[str, Any]] = {
    "bailing_moe_v2": {
        **_SIZES,
        "architectures": ["BailingMoeV2ForCausalLM"],
        "auto_map": {"AutoConfig": "configuration.Config"},
        "num_experts": EXPERTS,
        "num_experts_per_tok": 2,
        "num_shared_experts": 1,
        "first_k_dense_replace": 1,
        "n_group": 2,
        "topk_group": 1,
        "norm_topk_prob": True,
        "score_function": "sigmoid",
        "moe_router_enable_expert_bias": True,
        "routed_scaling_factor": 2.5,
        "use_qk_norm": True,
        "use_rmsnorm": True,
        "use_bias": False,
        "use_qkv_bias": False,
        "embedding_dropout": 0.0,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e4},
    },
    "step3p5": {
        **_SIZES,
        "architectures": ["Step3p5ForCausalLM"],
        "num_attention_groups": 2,
        "moe_num_experts": EXPERTS,
        "moe_top_k": 2,
        "share_expert_dim": NARROW,
        "moe_router_activation": "sigmoid",
        "moe_router_scaling_factor": 2.5,
        "use_moe_router_bias": True,
        "layer_types": ["full_attention"] * 3,
        "rope_theta": 1e4,
    },
}
# The config class that such a model brings along.
_CODE = """from transformers import PreTrainedConfig


class Config(PreTrainedConfig):
    model_type = "bailing_moe_v2"
"""
_LAYER: dict[str, dict[str, tuple[int, ...]]] = {
    "bailing_moe_v2": {
        "attention.query_key_value.weight": (6 * HEAD, HIDDEN),
        "attention.query_layernorm.weight": (HEAD,),
        "attention.key_layernorm.weight": (HEAD,),
        "attention.dense.weight": (HIDDEN, 2 * HEAD),
    },
    "step3p5": {
        **{f"self_attn.{one}_proj.weight": (2 * HEAD, HIDDEN) for one in "qkv"},
        "self_attn.q_norm.weight": (HEAD,),
        "self_attn.k_norm.weight": (HEAD,),
        "self_attn.o_proj.weight": (HIDDEN, 2 * HEAD),
    },
}


def _swiglu(stem: str, width: int, *first: int) -> dict[str, tuple[int, ...]]:
    inward = {f"{stem}{one}_proj.weight": (*first, width, HIDDEN) for one in ("gate", "up")}
    return inward | {f"{stem}down_proj.weight": (*first, HIDDEN, width)}


def _experts(family: str) -> dict[str, tuple[int, ...]]:
    if family == "step3p5":
        return {
            "moe.gate.weight": (EXPERTS, HIDDEN),
            "moe.router_bias": (EXPERTS,),
            **_swiglu("moe.", NARROW, EXPERTS),
            **_swiglu("share_expert.", NARROW),
        }
    found = {"mlp.gate.weight": (EXPERTS, HIDDEN), "mlp.gate.expert_bias": (EXPERTS,)}
    for expert in range(EXPERTS):
        found |= _swiglu(f"mlp.experts.{expert}.", NARROW)
    return found | _swiglu("mlp.shared_experts.", NARROW)


def shapes_of(family: str) -> dict[str, tuple[int, ...]]:
    """Return names and shapes of a model's tensors: of three layers the first has no experts."""
    word = "word_embeddings" if family == "bailing_moe_v2" else "embed_tokens"
    found = {
        f"model.{word}.weight": (VOCAB, HIDDEN),
        "model.norm.weight": (HIDDEN,),
        "lm_head.weight": (VOCAB, HIDDEN),
    }
    for layer in range(3):
        own = {
            "input_layernorm.weight": (HIDDEN,),
            "post_attention_layernorm.weight": (HIDDEN,),
            **_LAYER[family],
            **(_experts(family) if layer else _swiglu("mlp.", WIDE)),
        }
        found |= {f"model.layers.{layer}.{name}": shape for name, shape in own.items()}
    return found


def make_foreign(family: str, folder: Path) -> Path:
    """Write a random checkpoint into ``folder`` and return it."""
    generator = torch.Generator().manual_seed(1)

    def value(name: str, shape: tuple[int, ...]) -> Tensor:
        if "norm" in name:
            return torch.ones(shape)
        std = 0.3 if name.endswith("bias") else 1.5 / shape[-1] ** 0.5
        return torch.randn(shape, generator=generator) * std

    folder.mkdir(parents=True)
    tensors = {name: value(name, shape) for name, shape in shapes_of(family).items()}
    write(folder, tensors, {"model_type": family, **CONFIGS[family]})
    (folder / "configuration.py").write_text(_CODE)
    return folder


def barred(base: Checkpoint, kept: Mapping[int, tuple[int, ...]], out: Path) -> Path:
    """Write a copy of a base in which only these experts of a layer can be chosen."""
    tensors = tensors_of(base.folder)
    for layer, ids in kept.items():
        (rows,) = (name.format(layer=layer) for name in base.layout.router_rows)
        tensors[rows][[one for one in range(EXPERTS) if one not in ids]] = -1e9
    out.mkdir()
    write(out, tensors, base.config)
    for file in base.folder.glob("*.py"):
        (out / file.name).write_bytes(file.read_bytes())
    return out
