"""Joint training of deltas and routers against text and against the dense base."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from benchmarks.demo_model.corpus_tokens import save_atomically
from benchmarks.demo_model.experts import Observed, Slices, fresh_factors, moe_feed_forward
from benchmarks.demo_model.network import dense_feed_forward, hidden_states, logits
from offline.demo.dense import Dense

_WATCHED = (10, 20, 29)  # layers whose feed-forward inputs are compared with the dense base's


@dataclass(frozen=True, slots=True)
class Settings:
    """Everything that decides the result; written into the deltas' metadata."""

    steps: int
    ranks: int = 2
    positions: int = 320  # per rank and step, where the output layer is evaluated
    lr_a: float = 1e-3
    lr_b: float = 4e-3
    lr_router: float = 1e-2
    kl: float = 0.5
    ce: float = 0.5
    hidden: float = 0.3
    balance: float = 0.01
    warmup: int = 6
    chat_from: int = 12  # the step from which one block in eight is chat
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Ingredients:
    """What joint training starts from."""

    dense: Dense
    neurons: Tensor  # [experts, layers, kept]
    routers: Tensor  # [layers, experts, hidden]
    domains: list[Tensor]  # train blocks [n, time] of each domain
    chat: Path  # file with the chat blocks [n, time]


def train(rank: int, work: Path, settings: Settings, parts: Ingredients) -> None:
    """One rank of the training; leaves ``work/joint.pt``. Continues from it if it is there."""
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{work}/rendezvous", rank=rank, world_size=settings.ranks
    )
    experts, _, kept = parts.neurons.shape
    values = {**fresh_factors(experts, kept, settings.seed), "routers": parts.routers.clone()}
    values = {name: v.requires_grad_() for name, v in values.items()}
    optimizer = torch.optim.Adam(_groups(values, settings), betas=(0.9, 0.98))
    start = _restore(work / "joint.pt", values, optimizer)
    slices = Slices.cut(parts.dense, parts.neurons)
    for step in range(start, settings.steps):
        # by step, so that a continued run draws the same positions
        torch.manual_seed(settings.seed + settings.ranks * step + rank)
        began = time.monotonic()
        losses = _backward(_batch(rank, step, settings, parts), slices, values, settings, parts)
        _share_gradients(values, settings.ranks)
        _schedule(optimizer, step, settings)
        optimizer.step()
        optimizer.zero_grad()
        if rank == 0:
            shown = " ".join(f"{k} {v:.3f}" for k, v in losses.items())
            print(f"step {step} {shown} ({time.monotonic() - began:.1f} s)", flush=True)
            if step % 10 == 9 or step == settings.steps - 1:
                _save(work / "joint.pt", step + 1, values, optimizer)
    dist.destroy_process_group()


def _groups(values: dict[str, Tensor], settings: Settings) -> list[dict[str, object]]:
    rates = {"a": settings.lr_a, "b": settings.lr_b, "s": settings.lr_router}  # by last letter
    return [{"params": [v], "lr": rates[n[-1]], "top": rates[n[-1]]} for n, v in values.items()]


def _schedule(optimizer: torch.optim.Optimizer, step: int, settings: Settings) -> None:
    """Linear warm-up, then a cosine down to a twentieth."""
    warm = min(1.0, (step + 1) / settings.warmup)
    cosine = 0.5 + 0.5 * math.cos(math.pi * step / settings.steps)
    for group in optimizer.param_groups:
        group["lr"] = group["top"] * warm * (0.05 + 0.95 * cosine)


def _batch(rank: int, step: int, settings: Settings, parts: Ingredients) -> Tensor:
    """One block of each domain, one of them replaced by chat; this rank's share [n, time]."""
    blocks = [d[step % len(d)] for d in parts.domains]
    if step >= settings.chat_from:
        chat = torch.load(parts.chat)
        blocks[(step * 3) % len(blocks)] = chat[step % len(chat)]
    return torch.stack(blocks[rank :: settings.ranks])


def _backward(
    tokens: Tensor, slices: Slices, values: dict[str, Tensor], settings: Settings, p: Ingredients
) -> dict[str, float]:
    """Losses of one batch; leaves their gradients in ``values``."""
    watched: dict[int, Tensor] = {}
    own = dense_feed_forward(p.dense)

    def teacher(layer: int, x: Tensor) -> Tensor:
        if layer in _WATCHED:
            watched[layer] = x
        return own(layer, x)

    with torch.no_grad():
        target = hidden_states(p.dense, tokens, teacher)[:, :-1].flatten(0, 1)
    observed = Observed()
    factors = {name: v for name, v in values.items() if name != "routers"}
    block = moe_feed_forward(slices, factors, values["routers"], observed)
    hidden = hidden_states(p.dense, tokens, block)[:, :-1].flatten(0, 1)
    where = torch.randperm(len(hidden))[: settings.positions]
    student = logits(p.dense, hidden[where]).float().log_softmax(dim=-1)
    with torch.no_grad():
        wanted = logits(p.dense, target[where]).float().log_softmax(dim=-1)
    losses = {
        "kl": F.kl_div(student, wanted, reduction="batchmean", log_target=True),
        "ce": F.nll_loss(student, tokens[:, 1:].flatten()[where]),
        "hidden": _distance(observed.inputs, watched),
        "balance": torch.stack(observed.balance).mean(),
    }
    total = sum(getattr(settings, name) * loss for name, loss in losses.items())
    assert isinstance(total, Tensor)
    total.backward()  # type: ignore[no-untyped-call]
    return {name: loss.item() for name, loss in losses.items()}


def _distance(inputs: dict[int, Tensor], wanted: dict[int, Tensor]) -> Tensor:
    """Mean squared distance of the watched layers' inputs, relative to their size."""
    parts = []
    for layer, target in wanted.items():
        error = (inputs[layer].float() - target.float()).square().sum(dim=-1)
        parts.append((error / target.float().square().sum(dim=-1)).mean())
    return torch.stack(parts).mean()


def _share_gradients(values: dict[str, Tensor], ranks: int) -> None:
    for value in values.values():
        assert value.grad is not None
        dist.all_reduce(value.grad)
        value.grad /= ranks


def _save(path: Path, step: int, values: dict[str, Tensor], optimizer: torch.optim.Adam) -> None:
    detached = {name: v.detach() for name, v in values.items()}
    state = {"step": step, "values": detached, "optimizer": optimizer.state_dict()}
    save_atomically(state, path)


def _restore(path: Path, values: dict[str, Tensor], optimizer: torch.optim.Adam) -> int:
    if not path.is_file():
        return 0
    state = torch.load(path)
    with torch.no_grad():
        for name, value in values.items():
            value.copy_(state["values"][name])
    optimizer.load_state_dict(state["optimizer"])
    return int(state["step"])
