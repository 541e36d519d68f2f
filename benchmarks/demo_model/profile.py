"""What the dense base does on each domain: which neurons work, what the router would see."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.demo_model.network import hidden_states
from offline.demo.dense import FFN, LAYERS, Dense

KEPT = 1152  # neurons of 1536 that each expert keeps


@dataclass(frozen=True, slots=True)
class DomainProfile:
    """Measured on one domain's text.

    importance: [layers, ffn], mean |activation| times the norm of the neuron's output column;
    features: [layers, samples, hidden], what the feed-forward (and so a router) is given.
    """

    importance: Tensor
    features: Tensor


def profile_domain(dense: Dense, blocks: Tensor, samples: int, seed: int) -> DomainProfile:
    """Run the dense base over ``blocks`` [n, time] and collect its ``DomainProfile``."""
    norms = torch.stack(
        [dense.layer(i, "mlp.down_proj").float().norm(dim=0) for i in range(LAYERS)]
    )
    totals = torch.zeros(LAYERS, FFN)
    features: list[list[Tensor]] = [[] for _ in range(LAYERS)]
    generator = torch.Generator().manual_seed(seed)
    batches = torch.split(blocks, 4)
    picked: Tensor

    def feed_forward(layer: int, x: Tensor) -> Tensor:
        gate = F.silu(F.linear(x, dense.layer(layer, "mlp.gate_proj")))
        inner = gate * F.linear(x, dense.layer(layer, "mlp.up_proj"))
        totals[layer] += inner.abs().sum(dim=0, dtype=torch.float32)
        features[layer].append(x[picked])
        return F.linear(inner, dense.layer(layer, "mlp.down_proj"))

    with torch.no_grad():
        for batch in batches:
            picked = torch.randperm(batch.numel(), generator=generator)
            picked = picked[: samples // len(batches)]
            hidden_states(dense, batch, feed_forward)
    return DomainProfile(
        importance=totals / blocks.numel() * norms,
        features=torch.stack([torch.cat(layer) for layer in features]),
    )


def choose_neurons(importance: Tensor, kept: int = KEPT) -> Tensor:
    """Neurons that each expert keeps, sorted: [domains, layers, kept].

    importance: [domains, layers, ffn]. A neuron counts for a domain by what it does there, times
    how much more it does there than on average: those that all text needs stay in every expert,
    the rest goes to the specialists.
    """
    normed = importance / importance.sum(dim=-1, keepdim=True)
    score = normed.square() / normed.mean(dim=0, keepdim=True)
    return score.topk(kept, dim=-1).indices.sort(dim=-1).values


def fit_routers(features: Tensor, steps: int, sharpness: float) -> Tensor:
    """Linear domain classifiers, one per layer: [layers, domains, hidden].

    features: [domains, layers, samples, hidden]. Trained as logistic regression without bias (a
    Mixtral gate has none) on inputs scaled to unit size, whose scale is folded back. Logits are
    scaled at the end so that the mean largest probability is at most ``sharpness``: the second
    expert must have a say.
    """
    domains, layers, samples, hidden = features.shape
    x = features.float().transpose(0, 1).reshape(layers, domains * samples, hidden)
    scale = x.square().mean(dim=1, keepdim=True).sqrt() + 1e-4
    x = x / scale
    labels = torch.arange(domains).repeat_interleave(samples).expand(layers, -1)
    weight = torch.zeros(layers, domains, hidden, requires_grad=True)
    optimizer = torch.optim.Adam([weight], lr=0.02, weight_decay=1e-4)
    generator = torch.Generator().manual_seed(0)
    for _ in range(steps):
        rows = torch.randperm(x.shape[1], generator=generator)[:1024]
        scores = torch.einsum("lnh,ldh->lnd", x[:, rows], weight)
        loss = F.cross_entropy(scores.flatten(0, 1), labels[:, rows].flatten())
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    with torch.no_grad():
        return _soften(x, weight.detach(), sharpness) / scale


def _soften(x: Tensor, weight: Tensor, sharpness: float) -> Tensor:
    """Scale each layer's classifier down until its mean top probability is ``sharpness``."""
    logits = torch.einsum("lnh,ldh->lnd", x[:, ::8], weight)
    factors = torch.ones(len(weight))
    for layer in range(len(weight)):
        while factors[layer] > 0.05:
            top = (logits[layer] * factors[layer]).softmax(dim=-1).amax(dim=-1).mean()
            if top <= sharpness:
                break
            factors[layer] *= 0.9
    return weight * factors[:, None, None]
