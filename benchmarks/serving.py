"""Output tokens per second, pruned against base, at several numbers of users.

    python -m benchmarks.serving

A Mixtral whose experts dominate its weights, with 8 and with 4 experts, top-2, bfloat16. Weights
are dummies: speed does not depend on their values. Both sides run in one call through
``loadtest.compare``; the last line of stdout is one JSON object.
"""

from __future__ import annotations

import json
import tempfile
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import click
from rich.console import Console

from benchmarks.dummy_model import Shape, write_model, write_workload
from loadtest.cli import one_line
from loadtest.compare import CompareResult, ServerFlags, Settings, Target, compare
from loadtest.table import rich_tables

_HEADLINE_USERS = 8


@click.command(context_settings={"show_default": True})
@click.option("--users", default="1,8,32")
@click.option("--rounds", default=2)
@click.option("--duration", default=20.0, help="seconds per measurement")
@click.option("--layers", default=Shape().layers)
@click.option("--hidden", default=Shape().hidden)
@click.option("--intermediate", default=Shape().intermediate)
@click.option("--experts", default=8, help="of the base")
@click.option("--kept", default=4, help="of the pruned model")
@click.option("--prompt-tokens", default=64)
@click.option("--output-tokens", default=32)
@click.option("--eager/--compiled", default=True, help="without or with torch.compile")
@click.option("--out", type=click.Path(path_type=Path), help="keep compare.json and the logs here")
def main(
    users: str,
    rounds: int,
    duration: float,
    experts: int,
    kept: int,
    prompt_tokens: int,
    output_tokens: int,
    eager: bool,
    out: Path | None,
    **sizes: int,
) -> None:
    """Measure the serving ratio and print it as one line of JSON."""
    base = replace(Shape(), experts=experts, **sizes)
    pruned = replace(base, experts=kept)
    progress = Console(stderr=True, highlight=False, markup=False)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        settings = Settings(
            users=tuple(int(part) for part in users.split(",")),
            rounds=rounds,
            duration=duration,
            endpoint="completion",
            workload=str(write_workload(folder / "work.jsonl", prompt_tokens, output_tokens)),
            natural_requests=0,
        )
        flags = ServerFlags(dtype="bfloat16", max_model_len=1024, enforce_eager=eager)
        models = [
            write_model(folder / f"{shape.experts}-experts", shape) for shape in (base, pruned)
        ]
        sides = [Target(str(model), load_format="dummy") for model in models]
        kept_out = out or folder / "out"
        both = dict(zip(("base", "candidate"), sides, strict=True))
        result = one_line(lambda: compare(both, settings, kept_out, flags, progress.print))
    for table in rich_tables(result):
        progress.print(table)
    click.echo(json.dumps(_report(result, base, pruned)))


def _report(result: CompareResult, base: Shape, pruned: Shape) -> dict[str, Any]:
    users = result.settings.users
    headline = _HEADLINE_USERS if _HEADLINE_USERS in users else users[0]
    speeds = {n: result.ratio("output_tokens_per_second", n) for n in users}
    per_token = {n: result.ratio("tpot_ms_p50", n) for n in users}
    prefill = {n: result.ratio("ttft_ms_p50", n) for n in users}
    main_ratio = speeds[headline]
    return {
        "name": f"serving_output_tokens_per_second_pruned_over_base_{headline}_users",
        "value": None if main_ratio is None else round(main_ratio.median, 3),
        "unit": "ratio",
        "detail": {
            "speed_ratio": {n: r and round(r.median, 3) for n, r in speeds.items()},
            "speed_ratio_per_round": {
                n: r and [round(v, 3) for v in r.per_round] for n, r in speeds.items()
            },
            "speed_interval": {n: r and (r.low, r.high) for n, r in speeds.items()},
            "tpot_p50_ratio": {n: r and round(r.median, 3) for n, r in per_token.items()},
            "ttft_p50_ratio": {n: r and round(r.median, 3) for n, r in prefill.items()},
            "verdict": result.verdict,
            "peak_memory_ratio": (r := result.ratio("peak_bytes")) and round(r.median, 3),
            "errors": result.errors,
            "base": asdict(base),
            "kept_experts": pruned.experts,
            "server_arguments": result.server_arguments,
            "vllm": result.lifetimes[0].version,
        },
    }


if __name__ == "__main__":
    main()
