"""Is it a real Mixture-of-Experts? ``python -m benchmarks.demo_model.evidence --model DIR``.

Measures on held-out text of the eight domains: how far apart the experts are, who is used for
what, and what it costs each domain to lose the experts that serve another one. A masked expert's
score is removed before top-k, as in a pruned model.
"""

from __future__ import annotations

import argparse
import json
import random
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor

from benchmarks.demo_model.corpus_tokens import token_blocks
from benchmarks.demo_model.experts import TOP_K
from benchmarks.demo_model.network import (
    FeedForward,
    dense_feed_forward,
    hidden_states,
    logits,
)
from offline.data.domains import DOMAINS
from offline.data.packages import cache_root
from offline.demo.dense import LAYERS, Dense, load_dense

_EXPERTS = 8
_PROMPTS = (
    "What is the capital of France?",
    "Explain in two sentences why the sky is blue.",
    "Write a Python function that returns the larger of two numbers.",
    "Give me a short tip for a good night's sleep.",
)


@dataclass(slots=True)
class Moe:
    """A Mixtral checkpoint's weights with a mask over experts and a count of who was chosen."""

    weights: Dense
    alive: Tensor = field(default_factory=lambda: torch.ones(LAYERS, _EXPERTS, dtype=torch.bool))
    chosen: Tensor = field(default_factory=lambda: torch.zeros(LAYERS, _EXPERTS))

    @classmethod
    def load(cls, folder: Path) -> Moe:
        """Read all shards of ``folder``."""
        tensors: dict[str, Tensor] = {}
        for shard in sorted(folder.glob("*.safetensors")):
            tensors |= load_file(shard)
        return cls(Dense(tensors))

    def expert(self, layer: int, expert: int, name: str) -> Tensor:
        """One projection of one expert; name is w1, w2 or w3."""
        return self.weights.layer(layer, f"block_sparse_moe.experts.{expert}.{name}")

    def feed_forward(self, layer: int, x: Tensor) -> Tensor:
        """Top-2 of the experts alive, renormalised. x: [tokens, hidden]."""
        scores = F.linear(x, self.weights.layer(layer, "block_sparse_moe.gate")).float()
        scores = scores.masked_fill(~self.alive[layer], -torch.inf).softmax(dim=-1)
        top, chosen = scores.topk(TOP_K, dim=-1)
        top = (top / top.sum(dim=-1, keepdim=True)).to(x.dtype)
        self.chosen[layer] += chosen.flatten().bincount(minlength=_EXPERTS)
        output = torch.zeros_like(x)
        for e in range(_EXPERTS):
            rows, slot = (chosen == e).nonzero(as_tuple=True)
            if not len(rows):
                continue
            padded = F.pad(rows, (0, -len(rows) % 64))  # few shapes: see experts.py
            gate = F.silu(F.linear(x[padded], self.expert(layer, e, "w1")))
            inner = gate * F.linear(x[padded], self.expert(layer, e, "w3"))
            y = F.linear(inner, self.expert(layer, e, "w2"))[: len(rows)]
            output.index_add_(0, rows, y * top[rows, slot][:, None])
        return output


@torch.no_grad()
def perplexities(base: Dense, block: FeedForward, text: dict[str, Tensor]) -> dict[str, float]:
    """Perplexity of each domain. text: {domain: [n, time]}."""
    found = {}
    for name, tokens in text.items():
        hidden = hidden_states(base, tokens, block)[:, :-1].flatten(0, 1)
        losses = [
            F.cross_entropy(logits(base, h).float(), t, reduction="sum")
            for h, t in zip(
                torch.split(hidden, 512), torch.split(tokens[:, 1:].flatten(), 512), strict=True
            )
        ]
        found[name] = float(torch.stack(losses).sum() / len(hidden))
    return {name: round(float(torch.tensor(loss).exp()), 2) for name, loss in found.items()}


def utilisation(moe: Moe, text: dict[str, Tensor]) -> tuple[dict[str, float], Tensor]:
    """Unmasked perplexities and the share of choices [domains, layers, experts]."""
    found: dict[str, float] = {}
    shares = []
    for name, tokens in text.items():
        moe.chosen.zero_()
        found |= perplexities(moe.weights, moe.feed_forward, {name: tokens})
        shares.append(moe.chosen / moe.chosen.sum(dim=-1, keepdim=True))
    return found, torch.stack(shares)


def distances(moe: Moe) -> list[float]:
    """Mean over pairs of experts of |Wi - Wj| / sqrt(|Wi| |Wj|), one number per layer."""
    result = []
    for layer in range(LAYERS):
        flat = [
            torch.cat([moe.expert(layer, e, w).flatten() for w in ("w1", "w2", "w3")]).float()
            for e in range(_EXPERTS)
        ]
        pairs = [
            (flat[i] - flat[j]).norm() / (flat[i].norm() * flat[j].norm()).sqrt()
            for i, j in combinations(range(_EXPERTS), 2)
        ]
        result.append(round(float(torch.stack(pairs).mean()), 3))
    return result


def ablations(moe: Moe, text: dict[str, Tensor], shares: Tensor) -> dict[str, dict[str, float]]:
    """Perplexities after masking each domain's two most chosen experts in every layer."""
    table = {}
    for number, name in enumerate(DOMAINS):
        moe.alive.fill_(True)
        moe.alive.scatter_(1, shares[number].topk(2, dim=-1).indices, False)
        table[name] = perplexities(moe.weights, moe.feed_forward, text)
        print(f"without the experts of {name}: {table[name]}", flush=True)
    moe.alive.fill_(True)
    return table


def random_halves(moe: Moe, text: dict[str, Tensor], count: int) -> list[dict[str, float]]:
    """Perplexities with four random experts of eight in every layer, ``count`` draws."""
    rng, found = random.Random(0), []
    for _ in range(count):
        moe.alive.fill_(False)
        for layer in range(LAYERS):
            moe.alive[layer, rng.sample(range(_EXPERTS), 4)] = True
        found.append(perplexities(moe.weights, moe.feed_forward, text))
        print(f"random half: {found[-1]}", flush=True)
    moe.alive.fill_(True)
    return found


def chat_samples(folder: Path) -> dict[str, str]:
    """Greedy answers through the chat template, by transformers."""
    from transformers import AutoModelForCausalLM, AutoTokenizer  # slow to import

    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
    answers = {}
    for prompt in _PROMPTS:
        chat = [{"role": "user", "content": prompt}]
        ids = tokenizer.apply_chat_template(
            chat, add_generation_prompt=True, return_tensors="pt", return_dict=True
        )
        out = model.generate(**ids, max_new_tokens=60, do_sample=False)
        answers[prompt] = tokenizer.decode(
            out[0, ids["input_ids"].shape[1] :], skip_special_tokens=True
        )
    return answers


def measure(folder: Path, blocks: int, halves: int) -> dict[str, Any]:
    """All figures for the checkpoint in ``folder``, as JSON-ready values."""
    work = cache_root() / "demo-evidence"
    work.mkdir(parents=True, exist_ok=True)
    text = {name: b["heldout"][:blocks] for name, b in token_blocks(work).items()}
    dense, moe = load_dense(), Moe.load(folder)
    found, shares = utilisation(moe, text)
    mixture = shares.mean(dim=0)  # [layers, experts]; domains have equally many tokens
    entropy = -(mixture * mixture.clamp(min=1e-9).log()).sum(dim=-1) / torch.tensor(8.0).log()
    variation = mixture.std(dim=-1, correction=0) / mixture.mean(dim=-1)
    result: dict[str, Any] = {
        "tokens_per_domain": blocks * next(iter(text.values())).shape[1],
        "perplexity": {"dense": perplexities(dense, dense_feed_forward(dense), text), "moe": found},
        "expert_distance_per_layer": distances(moe),
        "share_of_choices_domain_by_expert": {
            name: [round(v, 3) for v in shares[i].mean(dim=0).tolist()]
            for i, name in enumerate(DOMAINS)
        },
        "utilisation_entropy_mean_min": [
            round(f(entropy).item(), 3) for f in (torch.mean, torch.min)
        ],
        "utilisation_variation_mean_max": [
            round(f(variation).item(), 3) for f in (torch.mean, torch.max)
        ],
        "smallest_share": round(mixture.min().item(), 4),
        "largest_share": round(mixture.max().item(), 4),
    }
    print(json.dumps(result, indent=1), flush=True)
    result["perplexity_without_experts_of"] = ablations(moe, text, shares)
    result["perplexity_random_half"] = random_halves(moe, text, halves)
    result["chat"] = chat_samples(folder)
    return result


def main() -> None:
    """Measure and print; write JSON with ``--out``."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, required=True, help="the demo model's folder")
    parser.add_argument("--out", type=Path, help="write the figures here as JSON")
    parser.add_argument("--blocks", type=int, default=4, help="held-out blocks of 256 per domain")
    parser.add_argument("--halves", type=int, default=3, help="random halves to try")
    options = parser.parse_args()
    figures = measure(options.model, options.blocks, options.halves)
    print(json.dumps(figures["chat"], indent=1))
    if options.out:
        options.out.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
