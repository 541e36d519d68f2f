"""Merging experts in a layer that is held ready for serving: right, in place, at what speed."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import torch

from benchmarks.gpu.steps import Bench
from benchmarks.gpu.timing import seconds_of
from vllm_moe_prune.live_experts import LiveExperts

_GB = 1e9
_SAMPLE = 257  # columns of every weight that are compared


def live_experts(bench: Bench) -> None:
    """Step A3: `LiveExperts` on one layer of the size of Mixtral-8x7B's, in bfloat16."""
    experts, hidden, inner = (8, 64, 96) if bench.tiny else (8, 4096, 14336)
    generator = torch.Generator(bench.device).manual_seed(0)
    shapes = {"w13_weight": (experts, 2 * inner, hidden), "w2_weight": (experts, hidden, inner)}
    weights = {
        name: torch.randn(
            shape, generator=generator, device=bench.device, dtype=torch.bfloat16
        ).mul_(0.02)
        for name, shape in shapes.items()
    }
    sample = {name: _sample(weight) for name, weight in weights.items()}
    total = sum(weight.numel() * weight.element_size() for weight in weights.values())
    parameters = {n: torch.nn.Parameter(w, requires_grad=False) for n, w in weights.items()}
    live = LiveExperts(SimpleNamespace(**parameters))
    before, places = live.digest(), [weight.data_ptr() for weight in weights.values()]
    rng = np.random.default_rng(0)
    w_em = np.eye(experts)[:6] + rng.normal(0, 0.2, (6, experts))
    matrix = w_em.astype(np.float32)
    first = seconds_of(lambda: live.set(matrix), bench.device)
    other = seconds_of(lambda: live.set(matrix[::-1].copy()), bench.device)
    for name, weight in weights.items():
        expected = torch.from_numpy(matrix[::-1].copy()) @ sample[name]
        wrong = (_sample(weight)[:6] - expected).abs().max() / expected.abs().max()
        bench.check(float(wrong) < 2**-7, f"{name}: merged weights differ by {wrong:.2g}")
        rest = torch.equal(_sample(weight)[6:], sample[name][6:])
        bench.check(rest, f"{name}: a slot beyond E' was written to")
    bench.check(places == [w.data_ptr() for w in weights.values()], "the weights have moved")
    restore = seconds_of(lambda: live.set(None), bench.device)
    bench.check(live.digest() == before, "the base does not come back bit for bit")
    bench.note(
        layer_gb=round(total / _GB, 3),
        seconds={"first": round(first, 3), "second": round(other, 3), "restore": round(restore, 3)},
        merged_gb_per_second=round(total / _GB / other, 2),
        host_copy_gb=round(live.pristine_bytes / _GB, 3),
    )
    if bench.on_gpu:
        bench.note(copied_gb_per_second=_copies(bench.device, 2**20 if bench.tiny else 2**29))
    else:
        bench.leave_out("copies from pageable against pinned host memory")


def _sample(weight: torch.Tensor) -> torch.Tensor:
    """Return some columns of a weight's rows [E, N], in float32 on the CPU."""
    flat = weight.view(len(weight), -1)
    step = max(flat.shape[1] // _SAMPLE, 1)
    return flat[:, ::step].float().cpu()


def _copies(device: str, size: int) -> dict[str, float]:
    """Return the GB a second from host memory to the device, of the two kinds of it."""
    target = torch.empty(size, dtype=torch.uint8, device=device)
    found = {}
    for kind, pinned in (("pageable", False), ("pinned", True)):
        host = torch.ones(size, dtype=torch.uint8, pin_memory=pinned)
        seconds_of(lambda host=host: target.copy_(host, non_blocking=True), device)
        took = seconds_of(lambda host=host: target.copy_(host, non_blocking=True), device)
        found[kind] = round(size / _GB / took, 2)
    return found
