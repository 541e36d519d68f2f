"""Cost of scoring inside vLLM over vLLM's own prefill of the same tokens, in one engine.

`python -m benchmarks.calibration --engine vllm` runs it. Both passes alternate in one process of
vLLM, whose memory is watched from outside; then the transformers engine scores the same text.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil

from benchmarks.dummy_model import Shape
from offline.calibration.calibrate import calibrate
from offline.calibration.corpus import Domain, Part
from offline.calibration.live import STEP_TOKENS, LiveScoring, engine_settings
from offline.calibration.memory import estimate_live
from offline.calibration.stored import stored_weights
from offline.engines.local.transformers import TransformersEngine
from serve.server import cpu_build
from vllm_moe_prune.checkpoint import Checkpoint

# Nearly all arithmetic is that of the experts; two layers, so that it is made in seconds.
SHAPE = Shape(hidden=1024, intermediate=3584, layers=2, vocab=4096)
_LIMIT = 1.25  # of a prefill: what all criteria may take
_MIB = 1024**2


def measure(
    model: Path, domains: Sequence[Domain], rounds: int, say: Callable[[str], None]
) -> dict[str, Any]:
    """Return the seconds of each pass, their ratios and the memory that they take."""
    checkpoint = Checkpoint.open(model)
    settings = engine_settings(checkpoint, domains, step_tokens=STEP_TOKENS, dtype="auto")
    timed: dict[str, list[float]] = {"prefill": [], "scoring": []}
    peaks: dict[str, int] = {}
    with LiveScoring(checkpoint, settings) as engine:
        passes = {"prefill": engine.prefill, "scoring": engine.score}
        for number in range(rounds + 1):  # the first round is not counted
            for name, run in passes.items():
                _forget_peaks()
                seconds = _seconds(lambda run=run: [run(one) for one in domains])
                peaks.setdefault(name, _peak())
                if number:
                    timed[name].append(seconds)
                say(f"round {number}: {name} {seconds:.2f} s")
        weights = _seconds(lambda: [stored_weights(checkpoint, one) for one in engine.experts])
    expected = estimate_live(
        checkpoint,
        [Part(one.name, "", len(one.token_ids)) for one in domains],
        length=domains[0].token_ids.shape[1],
        step_tokens=settings["max_num_batched_tokens"],
        cache=settings["kv_cache_memory_bytes"],
        on_host=cpu_build(),
    )
    program = expected.memory.get("the program", 0)
    pairs = list(zip(timed["scoring"], timed["prefill"], strict=True))
    seconds = {name: statistics.median(found) for name, found in timed.items()}
    seconds |= {"weight_criteria": weights, **_transformers(model, domains)}
    tokens = sum(one.num_tokens for one in domains)
    left = _LIMIT * seconds["prefill"] - seconds["scoring"]  # for weight criteria, of so many
    return {
        "per_round": [round(ours / plain, 3) for ours, plain in pairs],
        "with_weight_criteria": round((seconds["scoring"] + weights) / seconds["prefill"], 3),
        "transformers_over_vllm": round(
            seconds["transformers"] / (seconds["scoring"] + weights), 2
        ),
        "seconds": {name: round(found, 2) for name, found in seconds.items()},
        "peak_mib": {name: round(found / _MIB) for name, found in peaks.items()},
        "estimated_mib": round((expected.peak - program) / _MIB),  # of vLLM's processes
        "activations_of_a_step_mib": round(expected.memory["activations of a step"] / _MIB),
        "tokens": tokens,
        "tokens_from_which_all_is_1.25": round(tokens * weights / left) if left > 0 else None,
        "tokens_of_a_step": settings["max_num_batched_tokens"],
    }


def of_one_step(text: Domain) -> tuple[Domain, ...]:
    """Return the text as domains that go through vLLM once: a larger one goes twice."""
    size = max(STEP_TOKENS // text.token_ids.shape[1], 1)
    parts = range(0, len(text.token_ids), size)
    return tuple(
        replace(text, name=f"{text.name} {begin}", token_ids=text.token_ids[begin : begin + size])
        for begin in parts
    )


def _transformers(model: Path, domains: Sequence[Domain]) -> dict[str, float]:
    """Return the seconds of the other engine for the same scores, once."""
    engine = TransformersEngine(model)
    calibrate(engine, [domains[0]])  # what libraries do once
    return {"transformers": _seconds(lambda: calibrate(engine, domains))}


def _seconds(run: Callable[[], object]) -> float:
    begin = time.perf_counter()
    run()
    return time.perf_counter() - begin


def _engine_processes() -> list[psutil.Process]:
    return psutil.Process().children(recursive=True)


def _forget_peaks() -> None:
    """Let the kernel (Linux) count the peaks of vLLM's processes anew."""
    for process in _engine_processes():
        Path(f"/proc/{process.pid}/clear_refs").write_text("5")


def _peak() -> int:
    """Return the largest resident set of vLLM's processes since then, in bytes."""
    found = 0
    for process in _engine_processes():
        lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
        found += 1024 * sum(int(one.split()[1]) for one in lines if one.startswith("VmHWM:"))
    return found
