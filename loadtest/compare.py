"""`python -m loadtest.compare --base A --candidate B --out DIR`: see ``rounds`` for the method."""

from __future__ import annotations

import sys

if __name__ == "__main__" and not sys.flags.safe_path:
    # `python -m` looks first in the caller's folder, where a user may have a `serve.py`.
    sys.path.append(sys.path.pop(0))

import json
import math
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource
from rich.console import Console

from loadtest.cli import one_line
from loadtest.results import CompareResult, Settings
from loadtest.rounds import ServerFlags, Target, compare
from loadtest.table import rich_table

_DTYPES = ("auto", "half", "float16", "bfloat16", "float", "float32")  # vLLM's

__all__ = ["CompareResult", "ServerFlags", "Settings", "Target", "compare"]


def _numbers(_: click.Context, __: click.Parameter, value: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in value.split(","))
    except ValueError as error:
        raise click.BadParameter("numbers with commas between them, such as 1,8,32") from error


def _seconds(_: click.Context, __: click.Parameter, value: str) -> float:
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


def _json_object(_: click.Context, __: click.Parameter, value: str | None) -> dict[str, Any] | None:
    try:
        found = json.loads(value) if value else None
    except ValueError as error:
        raise click.BadParameter(f"not JSON: {error}") from error
    if found is not None and not isinstance(found, dict):
        raise click.BadParameter("must be a JSON object")
    return found


@click.command("compare", context_settings={"show_default": True})
@click.option("--base", required=True, help="model folder, Org/Name[@revision] or http://HOST:PORT")
@click.option("--candidate", required=True, help="the same, for the other side")
@click.option("--out", required=True, type=click.Path(file_okay=False, path_type=Path))
@click.option(
    "--users", default="1,8,32", callback=_numbers, help="concurrent users, measured each"
)
@click.option("--rounds", default=2, type=click.IntRange(min=1), help="servers started per side")
@click.option("--duration", default="20s", callback=_seconds, help="of one measurement")
@click.option("--requests", type=click.IntRange(min=1), help="per measurement, not --duration")
@click.option("--endpoint", type=click.Choice(["chat", "completion"]), default="chat")
@click.option("--workload", help="JSONL of prompts; default: the one shipped")
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
@click.option("--base-load-format", default="auto")
@click.option("--candidate-load-format", default="auto", help="pruned_moe for a compact checkpoint")
@click.option("--base-loader-config", callback=_json_object, help="JSON object")
@click.option("--candidate-loader-config", callback=_json_object, help='{"routing_map": "DIR"}')
@click.option("--dtype", type=click.Choice(_DTYPES), default="auto")
@click.option("--max-model-len", type=click.IntRange(min=1))
@click.option("--tensor-parallel-size", default=1, type=click.IntRange(min=1))
@click.option("--enforce-eager", is_flag=True)
@click.option("--serve-arg", multiple=True, help="one more word for both `vllm serve`; repeatable")
@click.option("--prefix-caching", is_flag=True, help="leave vLLM's prefix cache on")
@click.option("--startup-timeout", default="1800s", callback=_seconds, help="seconds")
@click.option("--json", "as_json", is_flag=True, help="print compare.json instead of the table")
def compare_command(out: Path, as_json: bool, **options: Any) -> None:
    """Serve two models one after the other, load both alike and report ratios."""
    source = click.get_current_context().get_parameter_source("duration")
    if options["requests"] is not None and source is ParameterSource.COMMANDLINE:
        raise click.UsageError("--requests and --duration both say how long to measure")
    take = options.pop
    base = Target(take("base"), take("base_load_format"), take("base_loader_config"))
    candidate = Target(
        take("candidate"), take("candidate_load_format"), take("candidate_loader_config")
    )
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
    )
    settings = Settings(**options)
    progress = Console(stderr=True, highlight=False, markup=False)
    result = one_line(
        lambda: compare(base, candidate, settings, out, flags, lambda line: progress.print(line))
    )
    if as_json:
        click.echo(result.model_dump_json(indent=2))
    else:
        Console().print(rich_table(result))
        click.echo(f"written: {out / 'compare.json'}, {out / 'compare.md'}")


if __name__ == "__main__":
    compare_command()
