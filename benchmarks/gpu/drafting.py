"""Speculative decoding: a small draft model, of another family, beside a compact target."""

from __future__ import annotations

from benchmarks.gpu.answers import Reference, ask, check_answers, settings
from benchmarks.gpu.models import mixed_map, write_model
from benchmarks.gpu.steps import Bench
from offline.build.build import build
from vllm_moe_prune.checkpoint import Checkpoint


def draft_beside_compact(bench: Bench) -> None:
    """Step B5: the target answers as it does alone, whatever the draft proposes."""
    base = write_model(bench.folder / "base", "mixtral")
    draft = write_model(bench.folder / "draft", "llama")
    routing_map, compact = mixed_map(base, (6, 4, 4, 4)), bench.folder / "compact"
    build(Checkpoint.open(base), routing_map, compact)
    speculative = {"method": "draft_model", "model": str(draft), "num_speculative_tokens": 2}
    arguments = settings(
        bench, enforce_eager=True, load_format="pruned_moe", speculative_config=speculative
    )
    found = ask(compact, arguments)
    check_answers(bench, "with a draft", found, Reference(base), routing_map, None)
