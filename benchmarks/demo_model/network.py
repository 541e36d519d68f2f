"""The dense Llama forward pass with a pluggable feed-forward, for training on a CPU.

Attention and embeddings stay frozen while the experts are made, so a plain function over a
dictionary of weights is all that training needs; only the feed-forward is passed in.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from offline.demo.dense import EPS, HEAD_DIM, HEADS, HIDDEN, KV_HEADS, LAYERS, THETA, Dense

#: (layer, x [tokens, hidden]) -> [tokens, hidden]
FeedForward = Callable[[int, Tensor], Tensor]


def dense_feed_forward(dense: Dense) -> FeedForward:
    """The base's own feed-forward."""

    def feed_forward(layer: int, x: Tensor) -> Tensor:
        gate = F.linear(x, dense.layer(layer, "mlp.gate_proj"))
        up = F.linear(x, dense.layer(layer, "mlp.up_proj"))
        return F.linear(F.silu(gate) * up, dense.layer(layer, "mlp.down_proj"))

    return feed_forward


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
