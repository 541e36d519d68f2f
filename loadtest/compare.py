"""`python -m loadtest.compare --base A --candidate B --out DIR`: see ``rounds`` for the method."""

from __future__ import annotations

import sys

if __name__ == "__main__" and not sys.flags.safe_path:
    # `python -m` looks first in the caller's folder, where a user may have a `serve.py`.
    sys.path.append(sys.path.pop(0))

import math
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource
from rich.console import Console

from loadtest.cli import one_line
from loadtest.configurations import json_object, read_configurations, size
from loadtest.endpoint import KEY_VARIABLE
from loadtest.results import BASE, CompareResult, Settings
from loadtest.rounds import compare
from loadtest.table import rich_tables
from loadtest.target import ServerFlags, Target

_DTYPES = ("auto", "half", "float16", "bfloat16", "float", "float32")  # vLLM's

__all__ = ["CompareResult", "ServerFlags", "Settings", "Target", "compare"]


def _numbers(_: click.Context, __: click.Parameter, value: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in value.split(","))
    except ValueError as error:
        raise click.BadParameter("numbers with commas between them, such as 1,8,32") from error


def _seconds(_: click.Context, __: click.Parameter, value: str | None) -> float | None:
    if value is None:
        return None
    try:
        seconds = float(value.removesuffix("s"))
    except ValueError as error:
        raise click.BadParameter("seconds, such as 20s") from error
    if not 0 < seconds < math.inf:
        raise click.BadParameter("must be above 0, and end")
    return seconds


def _temperature(_: click.Context, __: click.Parameter, value: float) -> float:
    if not 0 <= value < math.inf:
        raise click.BadParameter("must be 0 or more")
    return value


@click.command("compare", context_settings={"show_default": True})
@click.option("--base", help="model folder, Org/Name[@revision] or http://HOST:PORT")
@click.option("--candidate", help="the same, for the other side")
@click.option(
    "--configurations",
    type=click.Path(dir_okay=False, path_type=Path),
    help="YAML of any number of sides, instead of --base and --candidate",
)
@click.option("--out", required=True, type=click.Path(file_okay=False, path_type=Path))
@click.option(
    "--users", default="1,8,32", callback=_numbers, help="concurrent users, measured each"
)
@click.option("--rounds", default=3, type=click.IntRange(min=1), help="servers started per side")
@click.option(
    "--requests",
    type=click.IntRange(min=1),
    help="per measurement  [default: 4 a user, at least 16]",
)
@click.option(
    "--duration", callback=_seconds, help="instead: send for so long, then wait for the answers"
)
@click.option(
    "--engine",
    type=click.Choice(["locust", "vllm-bench"]),
    default="locust",
    help="vllm-bench: after each measurement `vllm bench serve` repeats it, for a second opinion",
)
@click.option("--endpoint", type=click.Choice(["chat", "completion"]), default="chat")
@click.option("--workload", help="prompts, JSONL or YAML; default: the one shipped")
@click.option("--max-tokens", type=click.IntRange(min=1), help="upper bound of an answer")
@click.option("--temperature", default=0.0, callback=_temperature)
@click.option(
    "--ignore-eos/--no-ignore-eos", default=True, help="equal lengths on both sides (vLLM)"
)
@click.option(
    "--natural-requests",
    default=16,
    type=click.IntRange(min=0),
    help="answers without ignore_eos, for their length",
)
@click.option(
    "--seed", default=0, type=click.IntRange(min=0), help="of prompt order, lengths and sampling"
)
@click.option(
    "--request-timeout", default="600s", callback=_seconds, help="that a request may take"
)
@click.option(
    "--processes", type=click.IntRange(min=1), help="of the client  [default: 1 for 64 users]"
)
@click.option(
    "--client-lag-ms",
    default=100.0,
    callback=_temperature,
    help="fail if the client itself was later than that (p95); 0: do not judge it",
)
@click.option("--insecure", is_flag=True, help="https: trust any certificate")
@click.option("--ca", help="https: file of certificates to trust")
@click.option("--api-key-env", default=KEY_VARIABLE, help="environment variable that holds the key")
@click.option("--base-load-format", default="auto")
@click.option("--candidate-load-format", default="auto", help="pruned_moe for a compact checkpoint")
@click.option("--base-loader-config", callback=json_object, help="JSON object")
@click.option("--candidate-loader-config", callback=json_object, help='{"routing_map": "DIR"}')
@click.option("--dtype", type=click.Choice(_DTYPES), default="auto")
@click.option("--max-model-len", type=click.IntRange(min=1))
@click.option("--tensor-parallel-size", default=1, type=click.IntRange(min=1))
@click.option("--enforce-eager", is_flag=True)
@click.option(
    "--kv-cache-memory", callback=size, help="of every side, such as 4GiB: equal KV caches"
)
@click.option(
    "--memory-share",
    type=click.FloatRange(0, 1, min_open=True),
    help="of the device, weights and KV cache of a side together: equal memory  [default: vLLM's]",
)
@click.option("--serve-arg", multiple=True, help="one more word for both `vllm serve`; repeatable")
@click.option("--prefix-caching", is_flag=True, help="leave vLLM's prefix cache on")
@click.option("--startup-timeout", default="1800s", callback=_seconds, help="seconds")
@click.option(
    "--records",
    type=click.Choice(["jsonl", "parquet"]),
    default="jsonl",
    help="form of the files of requests",
)
@click.option("--json", "as_json", is_flag=True, help="print compare.json instead of the table")
def compare_command(out: Path, as_json: bool, **options: Any) -> None:
    """Serve two models or more, one after the other, load them alike and report ratios.

    Exit status 1 if a request failed or the client could not keep up.
    """
    source = click.get_current_context().get_parameter_source("duration")
    if options["requests"] is not None and source is ParameterSource.COMMANDLINE:
        raise click.UsageError("--requests and --duration both say how long to measure")
    sides = _sides(options)
    take = options.pop
    extra = tuple(take("serve_arg"))
    if not take("prefix_caching"):
        extra = ("--no-enable-prefix-caching", *extra)
    flags = ServerFlags(
        dtype=take("dtype"),
        max_model_len=take("max_model_len"),
        tensor_parallel_size=take("tensor_parallel_size"),
        enforce_eager=take("enforce_eager"),
        startup_timeout=take("startup_timeout"),
        extra=extra,
        kv_cache_bytes=take("kv_cache_memory"),
        memory_share=take("memory_share"),
    )
    settings = Settings(**options)
    progress = Console(stderr=True, highlight=False, markup=False)

    def run() -> CompareResult:
        targets = sides if isinstance(sides, dict) else read_configurations(sides)
        result = compare(targets, settings, out, flags, lambda line: progress.print(line))
        from loadtest.report import write_comparison  # plotly takes a second

        write_comparison(out)
        return result

    result = one_line(run)
    if as_json:
        click.echo(result.model_dump_json(indent=2))
    else:
        for table in rich_tables(result):
            Console().print(table)
        files = ("compare.json", "compare.md", "loadtest.html")
        click.echo(f"written: {', '.join(str(out / name) for name in files)}")
    for line in result.verdict:
        click.echo(f"FAILED: {line}", err=True)
    if result.verdict:
        raise SystemExit(1)


def _sides(options: dict[str, Any]) -> dict[str, Target] | Path:
    """Take what says what is compared out of the options."""
    take = options.pop
    base = take("base"), take("base_load_format"), take("base_loader_config")
    candidate = take("candidate"), take("candidate_load_format"), take("candidate_loader_config")
    file: Path | None = take("configurations")
    if file is not None:
        if base[0] or candidate[0]:
            raise click.UsageError("--configurations names all sides: leave --base out")
        return file
    if not base[0] or not candidate[0]:
        missing = "--candidate" if base[0] else "--base"
        raise click.UsageError(f"Missing option '{missing}'.")
    return {BASE: Target(*base), "candidate": Target(*candidate)}


if __name__ == "__main__":
    compare_command()
