"""The transformers engine on a device: what scoring launches, and whether all is as on the CPU."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.gpu.models import MINUTE, QWEN3_30B, VOCAB, mixed_map, prompts, text, write_model
from benchmarks.gpu.steps import Bench
from benchmarks.gpu.timing import seconds_of
from offline.calibration.calibrate import calibrate
from offline.calibration.corpus import Domain
from offline.engines.local.transformers import TransformersEngine
from offline.finetune.examples import packed
from offline.finetune.finetune import finetune
from offline.finetune.settings import FinetuneSettings
from offline.finetune.where import Where

# What one layer may launch and wait for in a batch, with what the layer itself does.
MOST_LAUNCHES, MOST_SYNCHRONISATIONS = 200, 5
_LAYERS = 4
_RTOL = 1e-5
_GB = 1e9


def scoring(bench: Bench) -> None:
    """Step A4: 64k tokens scored on 4 layers of Qwen3-30B-A3B's size: time, memory, launches."""
    sizes = MINUTE if bench.tiny else {**QWEN3_30B, "num_hidden_layers": _LAYERS}
    dtype = torch.float32 if bench.tiny else torch.bfloat16
    folder = write_model(
        bench.folder / "model", "qwen3_moe", device=bench.device, dtype=dtype, **sizes
    )
    layers = int(sizes["num_hidden_layers"])
    engine = TransformersEngine(folder, device=bench.device, dtype="auto")
    length = 32 if bench.tiny else 512
    batch = 2 if bench.tiny else engine.tokens_per_batch // length
    engine.tokens_per_batch = batch * length
    vocab = engine.model.config.vocab_size
    calibrate(engine, [text(vocab, batch, length)])  # what libraries do once
    domain = text(vocab, batch * (2 if bench.tiny else 65536 // engine.tokens_per_batch), length)
    if bench.on_gpu:
        torch.cuda.reset_peak_memory_stats(bench.device)
        loaded = torch.cuda.memory_allocated(bench.device)
    ours = seconds_of(lambda: calibrate(engine, [domain]), bench.device)
    plain = seconds_of(lambda: _forward(engine, domain, batch), bench.device)
    bench.note(
        tokens=domain.num_tokens,
        seconds_per_layer=round(ours / layers, 4),
        plain_forward_seconds_per_layer=round(plain / layers, 4),
    )
    if not bench.on_gpu:
        bench.leave_out("memory, launches and synchronisations")
        return
    peak = torch.cuda.max_memory_allocated(bench.device)
    bench.note(peak_gb_beyond_the_model=round((peak - loaded) / _GB, 3))
    _count(bench, engine, vocab, batch, length)


def _forward(engine: TransformersEngine, domain: Domain, batch: int) -> None:
    with torch.inference_mode():
        for rows in torch.split(torch.from_numpy(domain.token_ids), batch):
            engine.model.model(input_ids=rows.to(engine.model.device), use_cache=False)


def _count(bench: Bench, engine: TransformersEngine, vocab: int, batch: int, length: int) -> None:
    """Count what a second batch adds: launches and waits, of scoring and of the model alone."""
    one, two = text(vocab, batch, length), text(vocab, 2 * batch, length)
    found = {}
    for name, run in {
        "scoring": lambda domain: calibrate(engine, [domain]),
        "model": lambda domain: _forward(engine, domain, batch),
    }.items():
        first, both = (_calls(lambda run=run, d=d: run(d)) for d in (one, two))
        found[name] = {key: (both[key] - first[key]) / _LAYERS for key in both}
        found[name] |= {f"once_{key}": (2 * first[key] - both[key]) / _LAYERS for key in both}
    bench.note(per_layer_and_batch=found)
    for key, most in (("launches", MOST_LAUNCHES), ("waits", MOST_SYNCHRONISATIONS)):
        count = found["scoring"][key]
        bench.check(count <= most, f"{count:.0f} {key} per layer and batch, more than {most}")


def _calls(run: Any) -> dict[str, int]:
    """Return how many kernels a call launches and how often it waits for the GPU."""
    activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities) as seen:
        run()
        torch.cuda.synchronize()
    counts = {event.key: event.count for event in seen.key_averages()}
    launches = ("cudaLaunchKernel", "cuLaunchKernel", "cudaLaunchCooperativeKernel")
    waits = ("cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize")
    return {
        "launches": sum(count for key, count in counts.items() if key.startswith(launches)),
        "waits": sum(count for key, count in counts.items() if key.startswith(waits)),
    }


def same_as_cpu(bench: Bench) -> None:
    """Step A5: scores, merged experts and a short finetune of a tiny model are those of the CPU."""
    sizes = MINUTE if bench.tiny else {}
    folder = write_model(bench.folder / "qwen3", "qwen3_moe", dtype=torch.float32, **sizes)
    domain = text(sizes.get("vocab_size", VOCAB), 4, 16 if bench.tiny else 64)
    found, expected = (
        calibrate(TransformersEngine(folder, device=device, dtype="float32"), [domain])
        for device in (bench.device, "cpu")
    )
    worst = max(
        _distance(found.domains, expected.domains), _distance(found.weights, expected.weights)
    )
    bench.note(scores_largest_relative_difference=worst)
    bench.check(worst <= _RTOL, f"scores differ by {worst:.2g}")
    counts = [
        all(
            np.array_equal(seen.counts, expected.domains[name][layer].counts)
            for layer, seen in layers.items()
        )
        for name, layers in found.domains.items()
    ]
    bench.check(all(counts), "counts differ")
    _merging(bench)
    _finetuning(bench, folder, domain)


def _distance(found: Any, expected: Any) -> float:
    """Return the largest difference of two numbers, over the largest one of their array."""
    if isinstance(found, Mapping):
        return max(_distance(found[key], expected[key]) for key in expected)
    if is_dataclass(found):
        pairs = ((getattr(found, f.name), getattr(expected, f.name)) for f in fields(found))
        return max(_distance(*pair) for pair in pairs)
    if found is None and expected is None:
        return 0.0
    ours, theirs = np.asarray(found, np.float64), np.asarray(expected, np.float64)
    return float(np.abs(ours - theirs).max() / max(np.abs(theirs).max(), 1e-30))


def _merging(bench: Bench) -> None:
    """A map with everything in it, and the base again bit for bit."""
    folder = write_model(bench.folder / "mixtral", "mixtral", dtype=torch.float32)
    routing_map = mixed_map(folder, (6, 4, 4, 3))
    engine, reference = (
        TransformersEngine(folder, device=device, dtype="float32")
        for device in (bench.device, "cpu")
    )
    ids = [prompts(1)[0]]
    base = engine.logits(ids)
    for one in (engine, reference):
        one.apply(routing_map)
    merged, expected = engine.logits(ids), reference.logits(ids)
    away = float((merged - expected).abs().max())
    bench.note(merged_logits_difference=away, merged_from_base=float((merged - base).abs().max()))
    bench.check(away < 1e-3, f"logits under a map differ by {away:.2g}")
    engine.apply(None)
    bench.check(torch.equal(engine.logits(ids), base), "the base does not come back bit for bit")


def _finetuning(bench: Bench, folder: Path, domain: Domain) -> None:
    """Three steps of AdamW: the losses are those of the CPU."""
    length = domain.token_ids.shape[1]
    examples = packed([domain], tokens=3 * length, seed=0)
    settings = FinetuneSettings(batch=1, learning_rate=1e-4)
    losses = [
        finetune(
            folder, examples, settings, bench.folder / f"trained-{number}",
            seed=0, where=Where(device=device),
        ).losses
        for number, device in enumerate(dict.fromkeys((bench.device, "cpu")))
    ]  # fmt: skip
    bench.note(losses=[round(loss, 6) for loss in losses[0]])
    bench.check(len(losses[0]) == 3, f"{len(losses[0])} steps instead of 3")
    away = float(np.abs(np.array(losses[0]) - np.array(losses[-1])).max())
    bench.check(away < 1e-3, f"losses differ by {away:.2g} from those of the CPU")
