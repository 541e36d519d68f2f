"""Whether a pruned server stays as it is under a load that lasts.

    python -m benchmarks.soak

A small random Mixtral, pruned to a compact checkpoint with experts merged and a mapped router, is
served by `pruned_moe`, and asked by 16 users for 20 minutes. Every request must be answered, and
the server's memory (private, and shared once) must not grow: the mean of the last tenth of the
samples is held against the mean of a tenth after a warm-up of a tenth. With ``--stock`` the
unpruned model is served by vLLM's own loader, to see what of that is vLLM's. The last line of
stdout is one JSON object, whose value is that growth; exit status 1 if it is above 5 %, or a
request failed.
"""

from __future__ import annotations

import json
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import mean
from typing import Any

import click

from benchmarks.watched_server import WatchedServer
from loadtest.cli import one_line
from loadtest.headless import measure
from loadtest.results import Settings
from serve.server import ServerSpec

_MOST_GROWTH = 0.05
_PERIOD_SECONDS = 1.0


@click.command(context_settings={"show_default": True})
@click.option("--minutes", default=20.0, type=click.FloatRange(min=0, min_open=True))
@click.option("--users", default=16, type=click.IntRange(min=1))
@click.option("--expert-metrics", is_flag=True, help="with the tokens of every expert counted")
@click.option("--stock", is_flag=True, help="the unpruned model, without the plugin")
@click.option("--out", type=click.Path(path_type=Path), help="keep records and logs here")
def main(minutes: float, users: int, expert_metrics: bool, stock: bool, out: Path | None) -> None:
    """Load a server for long and print one line of JSON."""
    from tests.sample_maps import build_compact
    from tests.tiny import make_tiny_mixtral  # torch takes seconds

    if stock and expert_metrics:
        raise click.UsageError("--expert-metrics: only the plugin counts tokens of experts")
    with tempfile.TemporaryDirectory(prefix="bench-soak-") as scratch:
        folder = out or Path(scratch)
        base = make_tiny_mixtral(Path(scratch) / "base", layers=4)
        spec = ServerSpec(
            base if stock else build_compact(base, Path(scratch) / "compact"),
            load_format="auto" if stock else "pruned_moe",
            loader_extra_config={"expert_metrics": True} if expert_metrics else None,
            dtype="float32",
            max_model_len=512,
            extra_args=("--no-enable-prefix-caching",),
        )
        found = one_line(lambda: _soak(spec, minutes, users, folder))
    report = {
        "name": "serving_soak_growth_of_resident_memory",
        "value": found["growth"],
        "unit": "ratio",
        "detail": {
            **found,
            "minutes": minutes,
            "users": users,
            "expert_metrics": expert_metrics,
            "stock": stock,
        },
    }
    click.echo(json.dumps(report))
    if found["errors"] or found["growth"] > _MOST_GROWTH:
        raise SystemExit(1)


def _soak(spec: ServerSpec, minutes: float, users: int, folder: Path) -> dict[str, Any]:
    settings = Settings(duration=60 * minutes, endpoint="completion", max_tokens=64)
    with WatchedServer(spec, folder / "server.log") as server:
        samples: list[int] = []
        done = threading.Event()
        watch = threading.Thread(target=_watch, args=(server, samples, done))
        watch.start()
        try:
            began = time.monotonic()
            measured = measure(server.url, users, settings, folder / "records.jsonl")
            seconds = time.monotonic() - began
        finally:
            done.set()
            watch.join()
    summary = measured.summary
    return {
        "growth": round(growth(samples), 4),
        "errors": summary.errors,
        "first_error": summary.first_error,
        "requests": summary.requests,
        "output_tokens": summary.output_tokens,
        "seconds": round(seconds, 1),
        "mebibytes": [round(one / 2**20, 1) for one in samples[:: max(1, len(samples) // 40)]],
        "client": measured.health.model_dump(),
    }


def _watch(server: WatchedServer, samples: list[int], done: threading.Event) -> None:
    while not done.wait(_PERIOD_SECONDS):
        samples.append(server.resident_bytes)


def growth(samples: Sequence[int]) -> float:
    """The last tenth's mean by that of the second tenth, less 1."""
    tenth = max(1, len(samples) // 10)
    warm = samples[tenth : 2 * tenth] or samples[:1]
    return mean(samples[-tenth:]) / mean(warm) - 1


if __name__ == "__main__":
    main()
