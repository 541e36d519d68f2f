"""Compiled models with routing maps: as transformers, and none is taken for another one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks.gpu.answers import Reference, ask, check_answers, settings
from benchmarks.gpu.models import mixed_map, write_model
from benchmarks.gpu.steps import Bench
from offline.build.build import build
from vllm_moe_prune.checkpoint import Checkpoint

# The same greatest count in another layer: what vLLM's config says of the two is the same.
_COUNTS = (6, 4, 4, 4)
_OTHERS = (4, 4, 4, 6)


def compiled_maps(bench: Bench) -> None:
    """Step B1: mixed routers, compiled with CUDA graphs; then another map with the same cache."""
    base = write_model(bench.folder / "base", "mixtral")
    maps = {name: mixed_map(base, counts) for name, counts in _both()}
    reference, cache = Reference(base), bench.folder / "cache"
    arguments = settings(bench, enforce_eager=False, load_format="pruned_moe")
    arguments |= {"compilation_config": {"cudagraph_capture_sizes": [1, 2, 4, 8]}}
    compact = bench.folder / "compact"
    build(Checkpoint.open(base), maps["first map"], compact)
    found = ask(compact, arguments, cache)
    check_answers(bench, "compact", found, reference, maps["first map"], maps["second map"])
    for name, other in (("first map", "second map"), ("second map", "first map")):
        folder = bench.folder / name.replace(" ", "-")
        maps[name].save(folder)
        extra = {"routing_map": str(folder)}
        served = ask(base, {**arguments, "model_loader_extra_config": extra}, cache)
        check_answers(bench, name, served, reference, maps[name], maps[other])
    entries = _entries(cache)
    bench.note(compile_cache_entries=len(entries))
    if entries:  # one of the base with each map, one of the compact checkpoint
        bench.check(len(entries) >= 3, f"{len(entries)} entries of compiled code for three models")
    if not bench.on_gpu:
        bench.leave_out("CUDA graphs")


def _both() -> list[tuple[str, Any]]:
    return [("first map", _COUNTS), ("second map", _OTHERS)]


def _entries(cache: Path) -> list[Path]:
    """Return the folders of vLLM's compiled models."""
    return [one for one in cache.glob("torch_compile_cache/torch_aot_compile/*") if one.is_dir()]
