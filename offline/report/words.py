"""How the report writes numbers and names."""

from __future__ import annotations

import math

from offline.results.compression import Quality
from offline.runs.units import gib

__all__ = ["gib"]

VARIANTS = {
    "base": "base",
    "random": "random",
    "frequency": "frequency",
    "soft_activation": "soft activation",
    "naee": "NAEE",
    "oneshot": "one-shot",
    "eep_prune": "EEP, pruning phase",
    "eep": "EEP",
    "lottery": "lottery",
}
UNITS = {"accuracy": "%", "margin": "nats x 100", "agreement": "%"}
SPLITS = {"search": "search", "selection": "selection", "test": "held-out"}

# Metric of compare.json -> (name in tables, name in the plot, divisor, digits).
METRICS = {
    "output_tokens_per_second": ("output tokens per second", "tokens/s", 1.0, 1),
    "ttft_ms_p50": ("time to first token, p50, ms", "TTFT p50", 1.0, 0),
    "ttft_ms_p95": ("time to first token, p95, ms", "TTFT p95", 1.0, 0),
    "answer_ms_p50": ("time to first answer token, p50, ms", "first answer p50", 1.0, 0),
    "prefill_tokens_per_second": ("prefill, prompt tokens/s", "prefill tokens/s", 1.0, 0),
    "decode_tokens_per_second": ("decode, tokens/s of a user", "decode tokens/s", 1.0, 1),
    "tpot_ms_p50": ("time per output token, p50, ms", "TPOT p50", 1.0, 1),
    "tpot_ms_p95": ("time per output token, p95, ms", "TPOT p95", 1.0, 1),
    "itl_ms_p50": ("inter-token latency, p50, ms", "ITL p50", 1.0, 1),
    "itl_ms_p95": ("inter-token latency, p95, ms", "ITL p95", 1.0, 1),
    "e2e_ms_p50": ("end-to-end latency, p50, ms", "E2E p50", 1.0, 0),
    "e2e_ms_p95": ("end-to-end latency, p95, ms", "E2E p95", 1.0, 0),
    "output_tokens_mean": ("output tokens per answer", "answer length", 1.0, 1),
    "startup_seconds": ("start-up, s", "start-up", 1.0, 1),
    "peak_bytes": ("peak host memory, GiB", "peak memory", 2.0**30, 2),
    "natural_output_tokens": ("natural answer length, tokens", "natural length", 1.0, 1),
}


def variant(name: str) -> str:
    """Name a variant; a criterion goes by its word."""
    return VARIANTS.get(name, name)


def task(quality: Quality) -> str:
    """Name what was measured: the task, and agreement where it is not accuracy."""
    name = plain(quality.task)
    return name if quality.measure == "accuracy" else f"{name} ({quality.measure})"


def plain(name: str) -> str:
    """Take from a name what plotly would read as markup; a user's file may be called anything."""
    return name.replace("<", "").replace("&", "")


def percent(value: float, digits: int = 1) -> str:
    """Write a share of 1 in percent."""
    return f"{100 * value:.{digits}f}%" if math.isfinite(value) else "-"


def points(value: float) -> str:
    """Write a difference of two shares in percentage points, with its sign."""
    return f"{100 * value:+.1f}" if math.isfinite(value) else "-"


def interval(low: float, high: float) -> str:
    """Write a confidence interval in percent."""
    return f"{100 * low:.1f} to {percent(high)}"


def change(before: int, after: int) -> str:
    """Write how much smaller or larger ``after`` is."""
    return f"{100 * (after - before) / before:+.1f}%" if before else "-"


def number(value: float | None, digits: int) -> str:
    """Write a number that may be missing."""
    return "-" if value is None or not math.isfinite(value) else f"{value:,.{digits}f}"


def duration(seconds: float) -> str:
    """Write a time as people say it."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"


def ids(values: tuple[int, ...]) -> str:
    """Write expert ids, runs of three and more shortened: 0, 2-5, 7."""
    parts: list[str] = []
    ordered = sorted(values)
    start = 0
    for end in range(1, len(ordered) + 1):
        if end < len(ordered) and ordered[end] == ordered[end - 1] + 1:
            continue
        run = ordered[start:end]
        parts += [f"{run[0]}-{run[-1]}"] if len(run) > 2 else [str(value) for value in run]
        start = end
    return ", ".join(parts)
