"""The model as plain tensors: a fast forward pass for training, and its checkpoint names.

The same function as transformers' ``MixtralForCausalLM`` (a test compares the logits). Experts of
a layer are stacked, and tokens are sorted by expert, so a step is few and large products.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F


@dataclass(frozen=True, slots=True)
class Shape:
    """Sizes of the model; embeddings are tied."""

    vocab: int = 4096
    hidden: int = 256
    layers: int = 4
    heads: int = 4
    intermediate: int = 384
    experts: int = 8
    top_k: int = 2
    positions: int = 1024
    theta: float = 10_000.0
    eps: float = 1e-5

    @property
    def head_dim(self) -> int:
        """Width of one attention head."""
        return self.hidden // self.heads


class Block(nn.Module):
    """One decoder layer: attention, then two of the experts."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        width, inner, experts = shape.hidden, shape.intermediate, shape.experts
        deep = 0.02 / (2 * shape.layers) ** 0.5  # what is added to the residual starts small
        self.norm1 = nn.Parameter(torch.ones(width))
        self.norm2 = nn.Parameter(torch.ones(width))
        self.qkv = nn.Parameter(torch.randn(3 * width, width) * 0.04)
        self.out = nn.Parameter(torch.randn(width, width) * deep)
        self.gate = nn.Parameter(torch.randn(experts, width) * 0.02)
        self.w13 = nn.Parameter(torch.randn(experts, 2 * inner, width) * 0.04)
        self.w2 = nn.Parameter(torch.randn(experts, width, inner) * deep)
        self.register_buffer("share", torch.full((experts,), 1 / experts))

    def forward(self, x: Tensor, mask: Tensor, rope: tuple[Tensor, Tensor]) -> tuple[Tensor, ...]:
        """x: [B, T, D], mask: [B, 1, T, T] -> (x, balance loss, chosen experts [B * T, k])."""
        x = x + self._attend(F.rms_norm(x, x.shape[-1:], self.norm1, self.shape.eps), mask, rope)
        normed = F.rms_norm(x, x.shape[-1:], self.norm2, self.shape.eps)
        mixed, balance, chosen = self._experts(normed.flatten(0, 1))
        return x + mixed.view_as(x), balance, chosen

    def _attend(self, x: Tensor, mask: Tensor, rope: tuple[Tensor, Tensor]) -> Tensor:
        batch, time, width = x.shape
        heads = F.linear(x, self.qkv).view(batch, time, 3, self.shape.heads, self.shape.head_dim)
        query, key, value = heads.permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(
            rotate(query, *rope), rotate(key, *rope), value, attn_mask=mask
        )
        return F.linear(mixed.transpose(1, 2).reshape(batch, time, width), self.out)

    def _experts(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """x: [N, D]. The k best of all experts, their softmax weights renormalised to one."""
        count, k = self.shape.experts, self.shape.top_k
        scores = F.linear(x, self.gate).softmax(dim=-1)  # [N, E]
        best, chosen = scores.topk(k, dim=-1)
        best = best / best.sum(dim=-1, keepdim=True)
        order = chosen.flatten().argsort(stable=True)  # [N * k], by expert
        rows = order // k
        sizes = chosen.flatten().bincount(minlength=count)
        parts = x[rows].split(sizes.tolist())
        # unbind, since the gradient of one slice would fill and add a tensor of all experts
        weights = zip(parts, self.w13.unbind(), self.w2.unbind(), strict=True)
        done = [_expert(part, w13, w2) for part, w13, w2 in weights]
        weighted = torch.cat(done) * best.flatten()[order, None]
        mixed = torch.zeros_like(x).index_add(0, rows, weighted)
        if self.training:  # balance over some fifty steps: one step sees too few documents
            self.share.lerp_(sizes / sizes.sum(), 0.02)
        return mixed, count * (self.share * scores.mean(dim=0)).sum(), chosen


def _expert(x: Tensor, w13: Tensor, w2: Tensor) -> Tensor:
    """x: [n, D], w13: [2 I, D], w2: [D, I] -> [n, D]."""
    gate, up = F.linear(x, w13).chunk(2, dim=-1)
    return F.linear(F.silu(gate) * up, w2)


class Network(nn.Module):
    """Token ids to logits, with the sum of the layers' balance losses (1 per layer is even)."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        self.embed = nn.Parameter(torch.randn(shape.vocab, shape.hidden) * 0.04)
        self.norm = nn.Parameter(torch.ones(shape.hidden))
        self.blocks = nn.ModuleList(Block(shape) for _ in range(shape.layers))

    def forward(self, ids: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """ids: [B, T] -> (final normed hidden states [B, T, D], mean balance loss)."""
        time = ids.shape[1]
        if mask is None:
            mask = torch.ones(time, time, dtype=torch.bool).tril()[None, None]
        rope = angles(self.shape, time)
        x, total = self.embed[ids], torch.zeros(())
        for block in self.blocks:
            x, balance, _ = block(x, mask, rope)
            total = total + balance
        normed = F.rms_norm(x, x.shape[-1:], self.norm, self.shape.eps)
        return normed, total / self.shape.layers

    def logits(self, hidden: Tensor) -> Tensor:
        """hidden: [..., D] -> [..., V]."""
        return F.linear(hidden, self.embed)


def angles(shape: Shape, time: int) -> tuple[Tensor, Tensor]:
    """cos and sin of the rotary angles, [T, head_dim] each."""
    exponents = torch.arange(0, shape.head_dim, 2, dtype=torch.float32) / shape.head_dim
    turned = torch.outer(torch.arange(time, dtype=torch.float32), shape.theta**-exponents)
    return turned.repeat(1, 2).cos(), turned.repeat(1, 2).sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Apply rotary positions. x: [B, heads, T, head_dim]."""
    low, high = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-high, low), dim=-1) * sin


def checkpoint_tensors(network: Network) -> Iterator[tuple[str, Tensor]]:
    """Give all weights under the names of a Mixtral checkpoint."""
    yield "model.embed_tokens.weight", network.embed
    yield "model.norm.weight", network.norm
    for number, block in enumerate(network.blocks):
        prefix = f"model.layers.{number}."
        yield f"{prefix}input_layernorm.weight", block.norm1
        yield f"{prefix}post_attention_layernorm.weight", block.norm2
        for name, weight in zip("qkv", block.qkv.chunk(3), strict=True):
            yield f"{prefix}self_attn.{name}_proj.weight", weight
        yield f"{prefix}self_attn.o_proj.weight", block.out
        yield f"{prefix}block_sparse_moe.gate.weight", block.gate
        for expert in range(network.shape.experts):
            w1, w3 = block.w13[expert].chunk(2)
            for name, weight in (("w1", w1), ("w2", block.w2[expert]), ("w3", w3)):
                yield f"{prefix}block_sparse_moe.experts.{expert}.{name}.weight", weight
