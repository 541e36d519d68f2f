"""Train the test-bed's model: ``python -m benchmarks.testbed.train --work DIR``.

Seeded, on one thread. A killed run continues from its last checkpoint when the command is given
again. The result, ``DIR/weights.safetensors`` and ``DIR/tokenizer.json``, is what is shipped.
"""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import Any

import click
import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn import functional as F

from benchmarks.testbed import mixture, passages, puzzles
from benchmarks.testbed.network import Network, Shape, checkpoint_tensors
from benchmarks.testbed.text import DOMAINS, load_corpora

_SAVE_SECONDS, _PROBE_STEPS = 120, 250


@dataclass(frozen=True, slots=True)
class Settings:
    """What decides the result, besides the shape and the text."""

    steps: int = 6000
    length: int = 512  # tokens of a block
    rows: int = 2  # blocks of a step
    rate: float = 2e-3
    fall: float = 0.2  # the last part of the steps, in which the rate falls to nothing
    warmup: int = 100
    balance: float = 0.01
    decay: float = 0.1
    clip: float = 1.0
    seed: int = 0

    def rate_at(self, step: int) -> float:
        """Warm-up, level, then a straight fall: what comes before the fall fits any length."""
        rising = (step + 1) / self.warmup
        falling = (self.steps - step) / (self.fall * self.steps)
        return self.rate * min(rising, 1.0, falling)


@dataclass(slots=True)
class Data:
    """Blocks to train on, and held-out probes."""

    ids: Tensor
    weights: Tensor
    seen: dict[str, int]
    text_sha256: dict[str, str]
    probes: dict[str, tuple[Tensor, Tensor]]


@click.command(context_settings={"show_default": True})
@click.option("--work", type=click.Path(path_type=Path), required=True, help="folder to work in")
@click.option("--steps", default=Settings().steps)
def main(work: Path, steps: int) -> None:
    """Train, or go on training, and write the weights."""
    torch.set_num_threads(1)
    work.mkdir(parents=True, exist_ok=True)
    settings, shape = Settings(steps=steps), Shape()
    data = prepare(work, shape, settings)
    network, seconds = run(work, shape, settings, data)
    header = {
        "settings": asdict(settings),
        "shape": asdict(shape),
        "tokens": settings.steps * settings.rows * settings.length,
        "shares": mixture.SHARES,
        "text_sha256": data.text_sha256,
        "seconds": round(seconds),
        "versions": {name: version(name) for name in ("torch", "tokenizers")},
    }
    export(network, work / "weights.safetensors", header)


def prepare(work: Path, shape: Shape, settings: Settings) -> Data:
    """Make the tokenizer and all blocks, or read them back.

    :raises ValueError: if ``work`` has fewer blocks than are needed
    """
    path, needed = work / "data.pt", settings.steps * settings.rows
    if not path.is_file():
        corpora = load_corpora()
        tokenizer = mixture.train_tokenizer(corpora, shape.vocab)
        tokenizer.save(str(work / "tokenizer.json"))
        packed = mixture.blocks(tokenizer, corpora, needed, settings.length, settings.seed)
        hashes = {name: corpus.sha256() for name, corpus in corpora.items()}
        made = Data(*packed, hashes, probes(tokenizer, settings.length))
        save({name: getattr(made, name) for name in Data.__slots__}, path)
    data = Data(**torch.load(path))
    if len(data.ids) < needed:
        raise ValueError(f"{path} has {len(data.ids)} blocks of {needed}: use another --work")
    return data


def probes(tokenizer: Tokenizer, length: int) -> dict[str, tuple[Tensor, Tensor]]:
    """Two blocks of each part that is not trained on: ids and loss weights [2, length]."""
    corpora = load_corpora()
    found = {}
    for name in mixture.SHARES:
        if name in DOMAINS:
            segments = [[(text, 1.0)] for text in corpora[name].heldout]
        else:
            made = (
                passages.stream(corpora, "pool", 0)
                if name == "classify"
                else puzzles.stream(name, "pool", 0)
            )
            segments = [mixture.puzzle_segments(one) for one in islice(made, 200)]
            segments = [[(text, float(weight > 1)) for text, weight in one] for one in segments]
        ids: list[int] = []
        weights: list[float] = []
        for one in segments:
            more, weighted = mixture.encode(tokenizer, one)
            ids, weights = ids + more, weights + weighted
        shaped = (2, length)
        found[name] = (
            torch.tensor(ids[: 2 * length]).view(shaped),
            torch.tensor(weights[: 2 * length]).view(shaped),
        )
    return found


def loss_of(network: Network, ids: Tensor, weights: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(weighted next-token loss, balance loss, share of weighted tokens that rank first)."""
    hidden, balance = network(ids, mixture.same_document(ids))
    wanted = weights[:, 1:] > 0
    logits = network.logits(hidden[:, :-1][wanted])
    target, weight = ids[:, 1:][wanted], weights[:, 1:][wanted]
    each = F.cross_entropy(logits, target, reduction="none")
    right = (logits.argmax(dim=-1) == target).float()
    return (each * weight).sum() / weight.sum(), balance, (right * weight).sum() / weight.sum()


def run(work: Path, shape: Shape, settings: Settings, data: Data) -> tuple[Network, float]:
    """Train from the last checkpoint to the end: (network, seconds in all)."""
    torch.manual_seed(settings.seed)
    network = Network(shape)
    groups = [
        {"params": [p for p in network.parameters() if (p.dim() > 1) == flag], "weight_decay": w}
        for flag, w in ((True, settings.decay), (False, 0.0))
    ]
    optimizer = torch.optim.AdamW(groups, lr=settings.rate, betas=(0.9, 0.98), fused=True)
    path, step, spent = work / "checkpoint.pt", 0, 0.0
    if path.is_file():
        state = torch.load(path)
        network.load_state_dict(state["network"])
        optimizer.load_state_dict(state["optimizer"])
        step, spent = state["step"], state["seconds"]
    begin = saved = time.perf_counter()
    while step < settings.steps:
        rows = slice(step * settings.rows, (step + 1) * settings.rows)
        for group in optimizer.param_groups:
            group["lr"] = settings.rate_at(step)
        loss, balance, _ = loss_of(network, data.ids[rows].long(), data.weights[rows].float())
        optimizer.zero_grad()
        (loss + settings.balance * balance).backward()
        norm = torch.nn.utils.clip_grad_norm_(network.parameters(), settings.clip)
        optimizer.step()
        step += 1
        now = time.perf_counter()
        if step % 25 == 0:
            tell(step=step, seconds=round(spent + now - begin), loss=round(loss.item(), 3))
            tell(balance=round(balance.item(), 3), norm=round(norm.item(), 2))
        if step % _PROBE_STEPS == 0 or step == settings.steps:
            probe(network, data)
        if now - saved > _SAVE_SECONDS or step == settings.steps:
            state = {"network": network.state_dict(), "optimizer": optimizer.state_dict()}
            save(state | {"step": step, "seconds": spent + now - begin}, path)
            saved = now
    return network, spent + time.perf_counter() - begin


@torch.no_grad()
def probe(network: Network, data: Data) -> None:
    """Log the held-out loss of each part, for puzzles that of the answers with top-1 accuracy."""
    for name, (ids, weights) in data.probes.items():
        loss, _, right = loss_of(network, ids, weights)
        tell(probe=name, loss=round(loss.item(), 3), right=round(right.item(), 3))


def export(network: Network, path: Path, header: dict[str, Any]) -> None:
    """Write the weights in bf16 under checkpoint names; the header says how they were made."""
    tensors = {
        name: weight.detach().to(torch.bfloat16).contiguous().clone()
        for name, weight in checkpoint_tensors(network)
    }
    partial = path.with_suffix(".partial")
    save_file(tensors, partial, {"format": "pt", "made": json.dumps(header, sort_keys=True)})
    partial.chmod(0o644)
    partial.replace(path)


def save(value: object, path: Path) -> None:
    """``torch.save`` that never leaves half a file behind."""
    partial = path.with_suffix(".partial")
    torch.save(value, partial)
    partial.replace(path)


def tell(**facts: object) -> None:
    """Log one line."""
    print(json.dumps(facts), flush=True)


if __name__ == "__main__":
    main()
