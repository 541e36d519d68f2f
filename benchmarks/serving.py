"""Output tokens per second, pruned against base, at several numbers of users, and what of.

    python -m benchmarks.serving

A Mixtral whose experts dominate its weights, with 8 experts, with 4, and with 4 of which each token
takes one; bfloat16. Weights are dummies: speed does not depend on their values. All sides run in
one call through ``loadtest.compare``. Then the same engines step in turn without a server, and a
budget says what lies between a decode step's ratio and the client's (`benchmarks.serving_budget`).
The last line of stdout is one JSON object. Run it on an idle machine.
"""

from __future__ import annotations

import json
import os
import tempfile
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import click
from rich.console import Console

from benchmarks.dummy_model import Shape, write_model, write_workload
from benchmarks.serving_budget import budget, step_ratios
from loadtest.cli import one_line
from loadtest.compare import CompareResult, ServerFlags, Settings, Target, compare
from loadtest.results import BASE
from loadtest.table import rich_tables

_HEADLINE_USERS = 8
_MAX_MODEL_LEN = 1024
_SHOWN = {
    "speed": "output_tokens_per_second",
    "decode_tpot_p50": "tpot_ms_p50",
    "prefill_ttft_p50": "ttft_ms_p50",
}


@click.command(context_settings={"show_default": True})
@click.option("--users", default="1,8,32")
@click.option("--rounds", default=3)
@click.option(
    "--requests",
    type=click.IntRange(min=1),
    help="per measurement  [default: 4 a user, at least 16]",
)
@click.option("--layers", default=Shape().layers)
@click.option("--hidden", default=Shape().hidden, help="64 for each head")
@click.option("--intermediate", default=Shape().intermediate)
@click.option("--experts", default=8, help="of the base")
@click.option("--kept", default=4, help="of the pruned model")
@click.option("--prompt-tokens", default=64)
@click.option("--output-tokens", default=32)
@click.option("--eager/--compiled", default=True, help="without or with torch.compile")
@click.option("--step-rounds", default=8, help="of engines without a server; 0 leaves them out")
@click.option("--out", type=click.Path(path_type=Path), help="keep compare.json and the logs here")
def main(
    users: str,
    rounds: int,
    requests: int | None,
    experts: int,
    kept: int,
    prompt_tokens: int,
    output_tokens: int,
    eager: bool,
    step_rounds: int,
    out: Path | None,
    **sizes: int,
) -> None:
    """Measure the serving ratio and print it as one line of JSON."""
    heads = sizes["hidden"] // 64  # smaller ones vLLM's attention on a CPU does not have
    base = replace(Shape(), experts=experts, heads=heads, kv_heads=min(4, heads), **sizes)
    pruned = replace(base, experts=kept)
    shapes = {BASE: base, "pruned": pruned, "top-1": replace(pruned, top_k=1)}
    progress = Console(stderr=True, highlight=False, markup=False)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        settings = Settings(
            users=tuple(int(part) for part in users.split(",")),
            rounds=rounds,
            requests=requests,
            endpoint="completion",
            workload=str(write_workload(folder / "work.jsonl", prompt_tokens, output_tokens)),
            natural_requests=0,
        )
        flags = ServerFlags(dtype="bfloat16", max_model_len=_MAX_MODEL_LEN, enforce_eager=eager)
        models = {name: write_model(folder / name, shape) for name, shape in shapes.items()}
        sides = {name: Target(str(model), "dummy") for name, model in models.items()}
        kept_out = out or folder / "out"
        result = one_line(lambda: compare(sides, settings, kept_out, flags, progress.print))
        for table in rich_tables(result):
            progress.print(table)
        report = _report(result, base, pruned)
        report["detail"]["budget"] = budget(result, kept_out)
        if step_rounds:
            engines = {name: _engine(model, eager) for name, model in models.items()}
            lengths = (prompt_tokens, output_tokens)
            threads = os.cpu_count() or 1
            report["detail"]["steps_alone"] = one_line(
                lambda: step_ratios(engines, settings.users, lengths, step_rounds, threads)
            )
    click.echo(json.dumps(report))


def _engine(model: Path, eager: bool) -> dict[str, Any]:
    """Arguments of `vllm.LLM` for what a server serves."""
    return {
        "model": str(model),
        "load_format": "dummy",
        "dtype": "bfloat16",
        "enforce_eager": eager,
        "enable_prefix_caching": False,
        "max_model_len": _MAX_MODEL_LEN,
    }


def _report(result: CompareResult, base: Shape, pruned: Shape) -> dict[str, Any]:
    users = result.settings.users
    headline = _HEADLINE_USERS if _HEADLINE_USERS in users else users[0]
    main_ratio = result.ratio("output_tokens_per_second", headline)
    return {
        "name": f"serving_output_tokens_per_second_pruned_over_base_{headline}_users",
        "value": None if main_ratio is None else round(main_ratio.median, 3),
        "unit": "ratio",
        "detail": {
            **{side: _ratios(result, side) for side in result.candidates},
            "verdict": result.verdict,
            "peak_memory_ratio": (r := result.ratio("peak_bytes")) and round(r.median, 3),
            "errors": result.errors,
            "base": asdict(base),
            "kept_experts": pruned.experts,
            "server_arguments": result.server_arguments,
            "vllm": result.lifetimes[0].version,
        },
    }


def _ratios(result: CompareResult, side: str) -> dict[str, Any]:
    """Users -> ratio, interval and value of each round, of what is shown."""
    found: dict[str, Any] = {}
    for name, metric in _SHOWN.items():
        for users in result.settings.users:
            ratio = result.ratio(metric, users, side)
            if ratio is not None:
                found.setdefault(name, {})[str(users)] = {
                    "ratio": round(ratio.median, 3),
                    "interval": [end and round(end, 3) for end in (ratio.low, ratio.high)],
                    "per_round": [round(value, 3) for value in ratio.per_round],
                }
    return found


if __name__ == "__main__":
    main()
