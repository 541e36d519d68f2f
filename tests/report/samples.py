"""Hand-made results of a run, a load test and a check."""

from __future__ import annotations

import random
from typing import Any

from offline.results.compression import LayerOutcome, Quality, RunResult, SearchPoint, Size
from vllm_moe_prune.provenance import DataIdentity, Provenance

GIB = 2**30


def run_result(num_layers: int = 30, num_experts: int = 8, **changes: Any) -> RunResult:
    """Return a run of EEP's pruning phase that keeps half of the experts."""
    rng = random.Random(0)
    keep, half = num_experts // 2, num_layers * num_experts // 2
    layers = []
    for layer in range(num_layers):
        usage = tuple(int(1000 * rng.paretovariate(1.6)) for _ in range(num_experts))
        weights = sorted(range(num_experts), key=lambda e: -usage[e] * rng.uniform(0.5, 1.5))
        kept = tuple(sorted(weights[:keep]))
        layers.append(
            LayerOutcome(
                layer=layer,
                num_experts=num_experts,
                num_kept=keep,
                kept=kept,
                top_k=2,
                router="sliced",
                usage=usage,
            )
        )
    fields: dict[str, Any] = {
        "model": "demo-moe-8x",
        "out": "pruned",
        "method": "eep",
        "task": "sciq",
        "tasks": ("sciq",),
        "fitness": "accuracy",
        "form": "compact",
        "summary": f"compact: {half} of {2 * half} experts in {num_layers} layers",
        "map_digest": "sha256:" + "0123456789abcdef" * 4,
        "base_size": Size(experts=2 * half, num_bytes=1379 * 2**20, expert_bytes=1215 * 2**20),
        "pruned_size": Size(experts=half, num_bytes=771 * 2**20, expert_bytes=607 * 2**20),
        "layers": tuple(layers),
        "search": search(100),
        "quality": quality(),
        "seconds": {"search": 431.25, "held-out": 122.5},
        "provenance": provenance(),
    }
    return RunResult(**{**fields, **changes})


def search(count: int) -> tuple[SearchPoint, ...]:
    """Return a search of which racing drops every tenth candidate, and whose last half merges."""
    rng, best, found = random.Random(1), 0.0, []
    for evaluation in range(1, count + 1):
        mean = 0.66 if evaluation <= 30 else 0.72
        fitness = round(200 * min(0.85, rng.gauss(mean, 0.035))) / 200
        complete = evaluation % 10 != 0
        best = max(best, fitness) if complete else best
        found.append(
            SearchPoint(
                evaluation=evaluation,
                phase="prune" if evaluation <= count // 2 else "merge",
                fitness=fitness,
                best=best,
                complete=complete,
                items=200 if complete else 25,
                seconds=4.25,
                tokens=12345,
            )
        )
    return tuple(found)


def quality() -> tuple[Quality, ...]:
    each = (0.652, 0.671, 0.688, 0.633, 0.702, 0.695, 0.641, 0.668, 0.659, 0.681)
    rows = (
        ("base", "test", 0.843, 0.819, 0.864, 1000, ()),
        ("random", "test", 0.669, 0.6523, 0.6857, 1000, each),
        ("frequency", "test", 0.731, 0.7027, 0.7575, 1000, ()),
        ("eep", "test", 0.764, 0.7367, 0.7893, 1000, ()),
        ("eep", "search", 0.825, 0.7665, 0.8713, 200, ()),
        ("eep", "selection", 0.785, 0.7229, 0.8363, 200, ()),
    )
    return tuple(
        Quality.model_validate(
            {
                "variant": variant,
                "task": "sciq",
                "split": split,
                "accuracy": accuracy,
                "low": low,
                "high": high,
                "items": items,
                "maps": len(maps) or 1,
                "each": maps,
            }
        )
        for variant, split, accuracy, low, high, items, maps in rows
    )


def provenance() -> Provenance:
    return Provenance(
        method="eep",
        settings={
            "method": "eep",
            "task": "sciq",
            "keep": 4,
            "top_k": None,
            "evaluations": 100,
            "initial": 30,
            "groups": "4",
            "search_items": 200,
            "finalists": 5,
            "selection_items": 200,
            "test_items": None,
            "random_maps": 10,
            "dtype": "auto",
        },
        seed=7,
        data=(
            DataIdentity(name="sciq", split="search", count=200, sha256="sha256:" + "ab" * 32),
            DataIdentity(name="sciq", split="selection", count=200, sha256="sha256:" + "cd" * 32),
        ),
        tool="vllm-moe-prune 0.1.0",
        versions={"python": "3.11.4", "torch": "2.9.1", "transformers": "5.10.2"},
        created="2026-03-01T12:00:00+00:00",
    )


def compare_json(users: tuple[int, ...] = (1, 8, 32)) -> dict[str, Any]:
    """Return what `loadtest.compare` writes; the pruned model is about a fifth faster."""
    rng = random.Random(2)
    lifetimes, ratios = [], []
    factor = {"base": 1.0, "candidate": 0.83}
    for number in (1, 2):
        for side, scale in factor.items():
            points = [_point(count, scale * rng.uniform(0.98, 1.02)) for count in users]
            lifetimes.append(
                {
                    "side": side,
                    "round": number,
                    "model": side,
                    "version": "0.32.1",
                    "startup_seconds": 41.5 * scale,
                    "peak_bytes": int(3.25 * GIB * scale),
                    "natural_output_tokens": 88.0,
                    "points": points,
                }
            )
    for count in users:
        ratios += [
            _ratio("output_tokens_per_second", count, True, (1.19, 1.23)),
            _ratio("ttft_ms_p50", count, False, (0.87, 0.81)),
            _ratio("ttft_ms_p95", count, False, (1.07, 0.91)),
            _ratio("itl_ms_p50", count, False, (0.83, 0.82)),
            _ratio("itl_ms_p95", count, False, (0.88, 0.86)),
            _ratio("e2e_ms_p50", count, False, (0.84, 0.83)),
            _ratio("output_tokens_mean", count, None, (1.0, 1.0)),
        ]
    ratios.append(_ratio("peak_bytes", None, False, (0.63, 0.65)))
    return {
        "schema_version": 1,
        "base": "demo-moe-8x",
        "candidate": "pruned",
        "settings": {"users": list(users), "rounds": 2, "duration": 20.0, "endpoint": "chat"},
        "server_arguments": ["--dtype", "bfloat16", "--max-model-len", "1024"],
        "created": "2026-03-01T13:00:00+00:00",
        "lifetimes": lifetimes,
        "ratios": ratios,
    }


def _point(users: int, scale: float) -> dict[str, Any]:
    rate = 21.5 * users**0.7 / scale
    return {
        "users": users,
        "seconds": 20.0,
        "requests": 5 * users,
        "errors": 0,
        "cut": users,
        "output_tokens_per_second": rate,
        "requests_per_second": 0.25 * users,
        "output_tokens_mean": 84.0,
        "ttft_ms": {"p50": 180 * users**0.5 * scale, "p95": 390 * users**0.5 * scale},
        "itl_ms": {"p50": 44.4 * users**0.3 * scale, "p95": 63.3 * users**0.3 * scale},
        "e2e_ms": None,
        "first_error": None,
    }


def _ratio(
    metric: str, users: int | None, better: bool | None, per_round: tuple[float, ...]
) -> dict[str, Any]:
    return {
        "metric": metric,
        "users": users,
        "per_round": list(per_round),
        "median": sum(per_round) / len(per_round),
        "higher_is_better": better,
    }


def check_json() -> dict[str, Any]:
    """Return what `vmprune check` writes."""
    return {
        "ok": True,
        "checks": [
            {
                "name": "log-probability parity",
                "ok": True,
                "value": 0.000613,
                "limit": 0.002,
                "detail": "mean over 128 tokens, float32",
            },
            {
                "name": "repetition",
                "ok": True,
                "value": 0.125,
                "limit": 0.5,
                "detail": "worst of 6 greedy answers",
            },
        ],
    }
