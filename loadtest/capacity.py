"""`python -m loadtest.capacity --host URL --slo-ttft-ms N`: the highest rate that meets an SLO."""

from __future__ import annotations

import sys

if __name__ == "__main__" and not sys.flags.safe_path:
    # `python -m` looks first in the caller's folder, where a user may have a `serve.py`.
    sys.path.append(sys.path.pop(0))

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
from pydantic import BaseModel, ConfigDict
from rich.console import Console

from loadtest.asking import warm_up
from loadtest.cli import one_line
from loadtest.endpoint import KEY_VARIABLE, Endpoint, key_from
from loadtest.headless import measure
from loadtest.metrics import Quantiles, Slo, Summary
from loadtest.results import Settings, write_atomic
from vllm_moe_prune.errors import PruneError

_USERS = 512  # more requests under way than a server at its capacity would have


class Step(BaseModel):
    """One rate that was tried: what was measured, and why it is too much, if it is."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    rate: float
    met: bool
    why: str
    summary: Summary


class Capacity(BaseModel):
    """The highest rate, in requests per second, that met the SLO, and the lowest that did not.

    ``rate`` is None if not even the lowest did, ``above`` None if the highest did.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    host: str
    slo: Slo
    seconds: float
    rate: float | None
    above: float | None
    steps: tuple[Step, ...]


@dataclass(frozen=True, slots=True)
class Bounds:
    """Between which rates to look, and how near to come, as a share of the rate."""

    low: float
    high: float
    precision: float


def bisect(bounds: Bounds, met: Callable[[float], bool]) -> tuple[float | None, float | None]:
    """The highest rate at which ``met`` holds and the lowest at which it does not.

    Rates are doubled from the lowest until one is too much, then the interval is halved.
    """
    good, rate = None, bounds.low
    while met(rate):
        good = rate
        if rate >= bounds.high:
            return good, None
        rate = min(2 * rate, bounds.high)
    if good is None:
        return None, rate
    bad = rate
    while bad - good > bounds.precision * good:
        middle = (good + bad) / 2
        good, bad = (middle, bad) if met(middle) else (good, middle)
    return good, bad


def misses(summary: Summary, slo: Slo) -> Iterator[str]:
    """Why a measurement does not meet the bounds (of p95), each as a few words."""
    if summary.errors:
        yield f"{summary.errors} requests failed: {summary.first_error}"
    for name in Slo.model_fields:
        limit = getattr(slo, name)
        found: Quantiles | None = getattr(summary, name)
        if limit is not None and found is not None and found.p95 > limit:
            yield f"p95 {name} {found.p95:.0f}, limit {limit:.0f}"
    if not summary.requests:
        yield "no request was answered"


def find(
    host: str,
    slo: Slo,
    settings: Settings,
    bounds: Bounds,
    seconds: float,
    out: Path,
    tell: Callable[[str], None] = lambda _: None,
) -> Capacity:
    """Measure open loops at rates chosen by bisection; write ``capacity.json`` and the records.

    :param seconds: that requests arrive for, at each rate
    :raises PruneError: if the client could not keep up: the rate would be its own
    """
    if slo == Slo():
        raise PruneError("no SLO to meet", hint="give --slo-ttft-ms, --slo-tpot-ms or --slo-e2e-ms")
    key = key_from(settings.api_key_env)
    warm_up(Endpoint.of(host, key, insecure=settings.insecure, ca=settings.ca), 1, settings)
    steps: list[Step] = []

    def met(rate: float) -> bool:
        extra = ("--rate", f"{rate:g}", "--run-time", f"{seconds:g}s")
        file = out / "rates" / f"{rate:g}.jsonl"
        found = measure(host, _USERS, settings, file, extra)
        for complaint in found.health.complaints(settings.client_lag_ms):
            raise PruneError(
                f"at {rate:g} requests/s the client was the bottleneck: {complaint}",
                hint="give more --processes, or another machine",
            )
        why = "; ".join(misses(found.summary, slo))
        steps.append(Step(rate=rate, met=not why, why=why, summary=found.summary))
        tell(f"{rate:g} requests/s: {why or 'met'}")
        return not why

    rate, above = bisect(bounds, met)
    result = Capacity(
        host=host, slo=slo, seconds=seconds, rate=rate, above=above, steps=tuple(steps)
    )
    write_atomic(out / "capacity.json", result.model_dump_json(indent=2) + "\n")
    return result


_POSITIVE = click.FloatRange(min=0, min_open=True)


@click.command("capacity", context_settings={"show_default": True})
@click.option("--host", required=True, help="http://HOST:PORT")
@click.option("--out", required=True, type=click.Path(file_okay=False, path_type=Path))
@click.option("--slo-ttft-ms", type=_POSITIVE, help="bound of p95 of the time to first token")
@click.option("--slo-tpot-ms", type=_POSITIVE, help="bound of p95 of the time per output token")
@click.option("--slo-e2e-ms", type=_POSITIVE, help="bound of p95 of the end-to-end latency")
@click.option("--low", default=0.5, type=_POSITIVE, help="requests per second to begin with")
@click.option("--high", default=256.0, type=_POSITIVE, help="where to stop")
@click.option("--precision", default=0.1, type=_POSITIVE, help="share of the rate")
@click.option("--seconds", default=30.0, type=_POSITIVE, help="of arrivals at each rate")
@click.option("--endpoint", type=click.Choice(["chat", "completion"]), default="chat")
@click.option("--workload", help="prompts, JSONL or YAML; default: the one shipped")
@click.option("--max-tokens", type=click.IntRange(min=1), help="upper bound of an answer")
@click.option("--ignore-eos/--no-ignore-eos", default=False, help="vLLM only")
@click.option("--seed", default=0, type=click.IntRange(min=0))
@click.option("--request-timeout", default=600.0, type=_POSITIVE, help="seconds")
@click.option("--processes", type=click.IntRange(min=1), help="of the client")
@click.option("--client-lag-ms", default=20.0, type=click.FloatRange(min=0), help="0: not judged")
@click.option("--insecure", is_flag=True, help="https: trust any certificate")
@click.option("--ca", help="https: file of certificates to trust")
@click.option("--api-key-env", default=KEY_VARIABLE, help="environment variable that holds the key")
@click.option("--json", "as_json", is_flag=True, help="print capacity.json")
def capacity_command(
    host: str,
    out: Path,
    low: float,
    high: float,
    precision: float,
    seconds: float,
    as_json: bool,
    **options: Any,
) -> None:
    """Find the highest rate of requests (Poisson arrivals) at which a server keeps its bounds."""
    slo = Slo(**{name: options.pop(f"slo_{name}") for name in Slo.model_fields})
    options["processes"] = options["processes"] or 1
    settings = Settings(**options)
    progress = Console(stderr=True, highlight=False, markup=False)
    bounds = Bounds(low, max(low, high), precision)
    result = one_line(lambda: find(host, slo, settings, bounds, seconds, out, progress.print))
    if as_json:
        click.echo(result.model_dump_json(indent=2))
    elif result.rate is None:
        click.echo(f"not even {low:g} requests/s meet the bounds")
    else:
        over = "nothing above was tried" if result.above is None else f"{result.above:g} do not"
        click.echo(f"{result.rate:g} requests/s meet the bounds, {over}")
    if result.rate is None:
        raise SystemExit(1)


if __name__ == "__main__":
    capacity_command()
