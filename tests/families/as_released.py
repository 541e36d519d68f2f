"""A tiny model as its family is released, where transformers saves another."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file

from vllm_moe_prune.config_keys import with_value

# What the config of a release has, a dot leads into a section; None is what it has not.
_FIELDS: dict[str, dict[str, Any]] = {
    # classes that transformers spells in another way than the hub and vLLM
    "phimoe": {"architectures": ["PhiMoEForCausalLM"]},
    "kimi_k25": {"architectures": ["KimiK25ForConditionalGeneration"]},
    "minimax_m3_vl_text": {"architectures": ["MiniMaxM3SparseForCausalLM"]},
    "minimax_m3_vl": {
        **{"text_config.hidden_act": "swigluoai", "text_config.moe_layer_freq": [0, 1, 1]},
        "text_config.sparse_attention_config": {
            **{"sparse_attention_freq": [0, 0, 0], "sparse_disable_index_value": [0, 0, 0]},
            **{"sparse_num_index_heads": 1, "sparse_index_dim": 128, "sparse_block_size": 128},
            **{"sparse_topk_blocks": 16, "sparse_init_block": 0, "sparse_local_block": 1},
            **{"use_sparse_attention": True, "sparse_score_type": "max"},
        },
    },
    "kimi_k2": {"model_type": "kimi_k2"},
    "longcat_flash": {
        **{"mla_scale_q_lora": True, "mla_scale_kv_lora": True, "zero_expert_type": "identity"},
    },
    "deepseek_v4": {
        **{"mlp_layer_types": None, "layer_types": None, "rope_parameters": None},
        **{"num_hash_layers": 1, "compress_ratios": [0, 0, 0], "rope_theta": 1e4},
        **{"topk_method": "noaux_tc", "scoring_func": "sqrtsoftplus", "expert_dtype": "bf16"},
    },
}
# Names that transformers writes and the releases, as it reads them, do not have.
_RENAMED = {
    "kimi_k25": {".blocks.": ".layers.", "model.mm_projector.": "mm_projector."},
    "minimax_m3_vl": {"layers.0.block_sparse_moe.": "layers.0.mlp."},
    "deepseek_v4": {
        **{"hc_head.hc_": "hc_head_", ".attn.norm.": ".attn.kv_norm."},
        **{"model.": "", "embed_tokens.": "embed."},
    },
}
# Whose save transformers alone, or the release alone, can be read by.
_BESIDE = ("kimi_k2", "longcat_flash", "deepseek_v4", "step3p5", "qwen3_omni_moe")
_PICTURES = {
    **{"patch_size": 14, "merge_kernel_size": 2, "temporal_merge_kernel_size": 4},
    **{"image_mean": [0.5] * 3, "image_std": [0.5] * 3, "in_patch_limit": 64},
}
# Settings of processors that vLLM reads although nothing but text comes.
_PROCESSORS = {"kimi_k25": {"media_proc_cfg": _PICTURES}}


def release(family: str, folder: Path) -> None:
    """Change what transformers saved into ``folder`` to what a release of the family has."""
    file = folder / "model.safetensors"
    if family in _BESIDE:
        shutil.copytree(folder, _beside(folder))
    if family in _RENAMED:
        rename(file, _RENAMED[family])
    if family == "qwen3_vl_moe":
        turn_experts(file)
    if family == "longcat_flash":  # experts that are none have no weights
        keep(file, lambda name: not re.search(r"\.experts\.(8|9|1\d)\.", name))
    if family == "step3p5":
        keep(file, lambda name: name.startswith(("model.", "lm_head.")))
        _only_text(folder)
    if family == "qwen3_omni_moe":
        _inside(folder)
    if family in _FIELDS:
        _write_config(folder, _FIELDS[family])
    if family in _PROCESSORS:
        (folder / "preprocessor_config.json").write_text(json.dumps(_PROCESSORS[family]))


def as_transformers(folder: Path) -> Path:
    """Return the folder in which a model is as transformers reads it: its own, or one beside it."""
    beside = _beside(folder)
    return beside if beside.exists() else folder


def _beside(folder: Path) -> Path:
    return folder.with_name(folder.name + "-as-transformers")


def _write_config(folder: Path, fields: Mapping[str, Any]) -> None:
    config = json.loads((folder / "config.json").read_text())
    for key, value in fields.items():
        config = with_value(config, key, value)
    kept = {key: value for key, value in config.items() if fields.get(key, key) is not None}
    (folder / "config.json").write_text(json.dumps(kept))


def _only_text(folder: Path) -> None:
    """Write Step-3.5's config for the language model of a Step-3.7, which is the same."""
    text = json.loads((folder / "config.json").read_text())["text_config"]
    fields = {
        **{"architectures": ["Step3p5ForCausalLM"], "moe_router_activation": "sigmoid"},
        **{"num_attention_groups": text["num_key_value_heads"], "moe_layers_enum": "1,2"},
        **{"moe_num_experts": text["n_routed_experts"], "moe_top_k": text["num_experts_per_tok"]},
        **{"norm_expert_weight": True, "use_moe": True, "use_moe_router_bias": True},
        **{"use_head_wise_attn_gate": True, "rope_theta": 1e4, "tie_word_embeddings": False},
    }
    gone = ("n_routed_experts", "num_experts_per_tok", "rope_parameters", "mlp_layer_types")
    kept = {key: value for key, value in text.items() if key not in gone}
    (folder / "config.json").write_text(json.dumps(kept | fields))


def _inside(folder: Path) -> None:
    """Make the thinker of a Qwen3-Omni the part that it is of a release, without the talker."""
    file = folder / "model.safetensors"
    named = {"thinker." + name: tensor for name, tensor in load_file(file).items()}
    save_file(named, file, metadata={"format": "pt"})
    config = {
        **{"model_type": "qwen3_omni_moe", "enable_audio_output": False},
        "architectures": ["Qwen3OmniMoeForConditionalGeneration"],
        "thinker_config": json.loads((folder / "config.json").read_text()),
    }
    (folder / "config.json").write_text(json.dumps(config))


def keep(file: Path, wanted: Callable[[str], bool]) -> None:
    """Leave out tensors whose names are not wanted."""
    tensors = load_file(file)
    kept = {name: one for name, one in tensors.items() if wanted(name)}
    save_file(kept, file, metadata={"format": "pt"})


def rename(file: Path, names: Mapping[str, str]) -> None:
    """Replace parts of names, except in the vision tower: old part -> new one."""
    found = {}
    for name, tensor in load_file(file).items():
        for old, new in names.items():
            name = name if name.startswith("vision_tower.") else name.replace(old, new)
        found[name] = tensor
    save_file(found, file, metadata={"format": "pt"})


def turn_experts(file: Path) -> None:
    """Transpose stacked experts, as the released model has them."""
    tensors = load_file(file)
    turned = {n: t.transpose(1, 2).contiguous() for n, t in tensors.items() if ".experts." in n}
    save_file(tensors | turned, file, metadata={"format": "pt"})
