"""Quantised bases with counts that GPU kernels may refuse: MXFP4 of gpt-oss, FP8 in blocks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu.answers import NotServedError, Reference, ask, check_answers, settings
from benchmarks.gpu.models import kept_map, write_model
from benchmarks.gpu.quantised import write_fp8_blocks, write_mxfp4
from benchmarks.gpu.steps import Bench
from offline.build.build import build
from vllm_moe_prune.checkpoint import Checkpoint
from vllm_moe_prune.errors import PruneError
from vllm_moe_prune.routing_map import RoutingMap


def mxfp4(bench: Bench) -> None:
    """Step B4: gpt-oss in MXFP4 with one count, and with counts that differ: served or refused."""
    if not _has_kernels(bench):
        return
    original = write_model(bench.folder / "original", "gpt_oss")
    base = write_mxfp4(original, bench.folder / "base", bench.folder / "readable")
    reference = Reference(bench.folder / "readable")
    for name, kept in (("uniform", [6, 6]), ("per layer", [5, 7])):
        routing_map = kept_map(base, kept)
        try:
            arguments = _built(bench, base, routing_map, name)
            found = ask(bench.folder / name, arguments)
        except (PruneError, NotServedError) as error:
            refused = isinstance(error, PruneError) or "PruneError" in str(error)
            bench.note(**{name: f"refused: {error}" if refused else "not served"})
            bench.check(refused and name == "per layer", f"{name}: {error}")
            continue
        check_answers(bench, name, found, reference, routing_map, kept_map(base, kept, seed=8))


def fp8_blocks(bench: Bench) -> None:
    """Step B4: FP8 in blocks, E' no multiple of 4 and E' = k: as vLLM chooses, or with Triton."""
    if not _has_kernels(bench):
        return
    original = write_model(bench.folder / "original", "qwen3_moe", num_hidden_layers=2)
    base = write_fp8_blocks(original, bench.folder / "base", bench.folder / "readable")
    reference = Reference(bench.folder / "readable")
    for name, kept in (("E' of 6", [6, 6]), ("E' of 5 and 2", [5, 2])):
        routing_map = kept_map(base, kept)
        arguments = _built(bench, base, routing_map, name)
        try:
            found = ask(bench.folder / name, arguments)
        except NotServedError as error:
            bench.note(**{f"{name}, as vLLM chooses": f"not served: {error}"})
            if not bench.on_gpu:
                raise
            found = ask(bench.folder / name, {**arguments, "moe_backend": "triton"})
        check_answers(bench, name, found, reference, routing_map, kept_map(base, kept, seed=8))


def _has_kernels(bench: Bench) -> bool:
    if bench.on_gpu or torch.cpu._is_amx_tile_supported():
        return True
    bench.leave_out("everything: vLLM's CPU kernels for it need AMX")
    return False


def _built(bench: Bench, base: Path, routing_map: RoutingMap, name: str) -> dict[str, Any]:
    """Build a checkpoint and return the arguments with which vLLM serves it."""
    plan = build(Checkpoint.open(base), routing_map, bench.folder / name)
    form = "auto" if plan.form == "plain" else "pruned_moe"
    return settings(bench, dtype="bfloat16", enforce_eager=True, load_format=form)
