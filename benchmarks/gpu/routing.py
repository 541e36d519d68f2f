"""Router maps on a device: the same choice as on the CPU, without a wait, in a recorded graph."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from benchmarks.gpu.steps import Bench
from benchmarks.gpu.timing import microseconds, no_synchronisation, recorded
from vllm_moe_prune.choice import Choice
from vllm_moe_prune.layer_map import LayerMap, Selection
from vllm_moe_prune.layout import Score
from vllm_moe_prune.layouts import LAYOUTS
from vllm_moe_prune.live_routing import LiveRouting
from vllm_moe_prune.mapped_router import MappedRouter
from vllm_moe_prune.routing import route

# (E, E', k, T): Mixtral, Qwen3-MoE, DeepSeek-V3; E' that is no multiple of 4, k = E'.
_SHAPES = (
    (8, 6, 2, 1),
    (8, 2, 2, 4096),
    (64, 45, 8, 1),
    (128, 90, 8, 1),
    (128, 90, 8, 64),
    (128, 90, 8, 8192),
    (256, 179, 8, 4096),
    (512, 384, 10, 4096),
)
_TINY = ((8, 6, 2, 1), (8, 2, 2, 64), (128, 90, 8, 64))
_CASES: dict[str, tuple[Score, bool]] = {
    "softmax, renormalised": ("softmax", True),
    "softmax": ("softmax", False),
    "sigmoid, renormalised": ("sigmoid", True),
}
_TIMED = "softmax, renormalised"
_ATOL, _RTOL = 1e-5, 1e-4  # weights of both signs may nearly cancel out
_SAME_IDS = 0.999  # of all rows: two scores may be equal but for rounding
Chosen = tuple[torch.Tensor, torch.Tensor]


def router_maps(bench: Bench) -> None:
    """Step A1: router maps on the device against `route` on the CPU, and what they cost.

    Of two ways: `route` in PyTorch, which a search computes with, and `MappedRouter`, which is
    served and is one kernel on a GPU.
    """
    for experts, kept, top_k, tokens in _TINY if bench.tiny else _SHAPES:
        name = f"E{experts} E'{kept} k{top_k} T{tokens}"
        logits, matrices = _inputs(experts, kept, tokens)
        found: dict[str, float] = {}
        for kind, w_rm in matrices.items():
            for case, (score, renormalise) in _CASES.items():
                expected = route(logits, w_rm, top_k, score=score, renormalise=renormalise)
                for way, run in _ways(bench, logits, w_rm, top_k, score, renormalise).items():
                    run()  # which may compile
                    with no_synchronisation(bench.device):
                        chosen = run()
                    for what in _differences(chosen, expected):
                        bench.check(False, f"{name}, {way}, {kind}, {case}: {what}")
                    if case == _TIMED:
                        found |= _times(bench, f"{way}_{kind}", run)
        bench.note(**{name: found})
    if not bench.on_gpu:
        bench.leave_out("synchronisation, CUDA graphs and the kernel for GPUs")


def _ways(
    bench: Bench,
    logits: torch.Tensor,
    w_rm: torch.Tensor,
    top_k: int,
    score: Score,
    renormalise: bool,
) -> dict[str, Callable[[], Chosen]]:
    given, matrix = logits.to(bench.device), w_rm.to(bench.device)
    with torch.device(bench.device):
        router = MappedRouter(w_rm.numpy(), score)
    if bench.on_gpu:
        bench.check(router.is_fused(given), f"E {logits.shape[1]}: not one kernel")
    return {
        "torch": lambda: route(given, matrix, top_k, score=score, renormalise=renormalise),
        "served": lambda: router(given, given, top_k, renormalise),
    }


def _times(bench: Bench, name: str, run: Callable[[], Chosen]) -> dict[str, float]:
    found = {f"{name}_us": microseconds(run, bench.device, 20 if bench.tiny else 200)}
    if bench.on_gpu:
        replay, _ = recorded(run, bench.device)
        found[f"{name}_in_graph_us"] = microseconds(replay, bench.device)
    return found


def _inputs(experts: int, kept: int, tokens: int) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Return logits [T, E] and router maps [E', E]: one-hot, continuous, and with both signs."""
    rng = np.random.default_rng(experts + tokens)
    logits = torch.from_numpy(rng.normal(0, 2, (tokens, experts)).astype(np.float32))
    rows = rng.choice(experts, kept, replace=False)
    one_hot = np.eye(experts, dtype=np.float32)[rows]
    near = 0.1 / experts * rng.random((kept, experts)).astype(np.float32)
    signed = one_hot + rng.normal(0, 0.02, (kept, experts)).astype(np.float32)
    matrices = {"one-hot": one_hot, "continuous": one_hot + near, "signed": signed}
    return logits, {name: torch.from_numpy(matrix) for name, matrix in matrices.items()}


def _differences(found: Chosen, expected: Chosen) -> list[str]:
    """Return what is not the same of two choices of weights and ids [T, k]."""
    wrong = []
    weights, ids = (one.cpu() for one in found)
    if not torch.allclose(weights, expected[0], rtol=_RTOL, atol=_ATOL):
        wrong.append(f"weights differ by {(weights - expected[0]).abs().max():.2g}")
    same = (ids == expected[1]).all(dim=1).float().mean().item()
    if same < _SAME_IDS:
        wrong.append(f"{1 - same:.2%} of the tokens choose others")
    return wrong


def live_routing(bench: Bench) -> None:
    """Step A2: a recorded router takes one map after another, and is the base again."""
    experts, top_k, tokens = 128, 8, 16 if bench.tiny else 1024
    layout = LAYOUTS["mixtral"]  # softmax, renormalised
    with torch.device(bench.device):
        choice = Choice("softmax", renormalises=True)
        routing = LiveRouting(experts, top_k, layout, choice, fixed_columns=True)
    logits = _inputs(experts, 90, tokens)[0].to(bench.device)

    def run() -> Chosen:
        return routing(logits, logits, top_k, True)

    if bench.on_gpu:
        replay, result = recorded(run, bench.device)

        def again() -> Chosen:
            replay()
            return result[0].clone(), result[1].clone()

    else:
        bench.leave_out("CUDA graphs: the router is called each time")
        again = run
    base = again()
    kept = tuple(int(i) for i in np.random.default_rng(1).choice(experts, 90, replace=False))
    fewer = top_k - 2
    entry = LayerMap(
        layer=0, num_experts=experts, num_kept=90, top_k=fewer, experts=Selection(kept=kept)
    )
    routing.set(entry)
    weights, ids = again()
    bench.check(
        set(ids[:, :fewer].flatten().tolist()) <= set(kept), "an expert that is dropped is chosen"
    )
    bench.check(bool((weights[:, fewer:] == 0).all()), "a column beyond top-k has a weight")
    rows = torch.tensor(kept)
    eye = torch.eye(90)
    expected = route(logits.cpu()[:, rows], eye, fewer, score="softmax", renormalise=True)
    for what in _differences(
        (weights[:, :fewer], ids[:, :fewer]), (expected[0], rows[expected[1]])
    ):
        bench.check(False, f"with the map {what}")
    routing.set(None)
    same = all(torch.equal(one, other) for one, other in zip(again(), base, strict=True))
    bench.check(same, "the base does not come back bit for bit")
    bench.note(replay_us=microseconds(again, bench.device, 20 if bench.tiny else 200))
