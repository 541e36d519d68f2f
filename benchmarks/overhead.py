"""What the plugin costs in serving, and what a pruned model saves at its start.

    python -m benchmarks.overhead

A Mixtral with random weights on disk, served by `vllm serve`, everything in one run:

(a) a plain checkpoint with `pruned_moe` against `auto`: output tokens per second
(b) one map as a compact checkpoint, with mapped against with sliced routers: the same
(c) a map applied while the base loads, against the base: start-up time and peak memory
(d) a plain checkpoint with half of the experts, against the base: start-up time and memory

Of (a) and (b) both servers are up, loaded in turn (``benchmarks.paired``); of (c) and (d) every
server starts alone. The last line of stdout is one JSON object; its value is (a).
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import click
from rich.console import Console

from benchmarks.dummy_model import Shape, write_workload
from benchmarks.paired import (
    Load,
    Ratios,
    WatchedServer,
    alternate,
    check_memory,
    median_of,
)
from benchmarks.random_model import write_random_model
from benchmarks.sides import Side, make_sides
from loadtest.asking import warm_up
from loadtest.cli import one_line
from loadtest.results import Settings
from vllm_moe_prune.checkpoint import Checkpoint

_SHAPE = Shape()
# The same vocabulary: a tokenizer takes memory in every process of a server.
_TINY = Shape(hidden=64, intermediate=64, layers=1, heads=2, kv_heads=2)
_MIB = 2**20


@dataclass(frozen=True, slots=True)
class Start:
    """What it took to start a server; memory in bytes, at the highest and once it was ready."""

    seconds: float
    cpu_seconds: float
    peak: int
    resident: int


@dataclass(frozen=True, slots=True)
class Bench:
    """Where servers write their logs, their common arguments, and who is told what happens."""

    folder: Path
    arguments: tuple[str, ...]
    tell: Callable[[str], None]

    def start(self, name: str, side: Side) -> Start:
        """Start a server alone and end it."""
        with self.serving(name, side) as server:
            found = Start(
                seconds=round(server.startup_seconds, 2),
                cpu_seconds=round(server.cpu_seconds, 2),
                peak=server.peak_bytes,
                resident=server.resident_bytes,
            )
        self.tell(
            f"  {name}: ready after {found.seconds:.1f} s, {found.cpu_seconds:.1f} s of CPU time, "
            f"peak {found.peak / _MIB:.0f} MiB, then {found.resident / _MIB:.0f} MiB"
        )
        return found

    def pair(self, names: tuple[str, str], sides: Mapping[str, Side], load: Load, n: int) -> Ratios:
        """Output tokens per second and CPU time of the second named side over the first one's."""
        self.tell(f"{names[1]} over {names[0]}")
        with self.serving(names[0], sides[names[0]]) as first:
            check_memory(first.peak_bytes)
            with self.serving(names[1], sides[names[1]]) as second:
                for server in (first, second):
                    warm_up(server.url, load.users, load.settings)
                return alternate(first, second, load, n, self.tell)

    def serving(self, name: str, side: Side) -> WatchedServer:
        """A server, to be entered."""
        return side.server(self.folder / f"{name}.log", self.arguments)


@click.command(context_settings={"show_default": True})
@click.option("--rounds", default=12, help="A B B A, of (a) and of (b); 0 leaves both out")
@click.option("--starts", default=2, help="of every server of (c) and (d); 0 leaves both out")
@click.option("--users", default=8, type=click.IntRange(1, 15))
@click.option("--requests", default=8, help="per block; a round is four blocks")
@click.option("--prompt-tokens", default=16, help="with the answer at most 128")
@click.option("--output-tokens", default=32)
@click.option("--layers", default=_SHAPE.layers)
@click.option("--hidden", default=_SHAPE.hidden, help="64 for each head")
@click.option("--intermediate", default=_SHAPE.intermediate)
@click.option("--eager/--compiled", default=True, help="without or with torch.compile")
def main(
    rounds: int,
    starts: int,
    users: int,
    requests: int,
    prompt_tokens: int,
    output_tokens: int,
    layers: int,
    hidden: int,
    intermediate: int,
    eager: bool,
) -> None:
    """Measure all four and print one line of JSON."""
    shape = Shape(hidden, intermediate, layers, heads=hidden // 64)
    progress = Console(stderr=True, highlight=False, markup=False, soft_wrap=True)
    with tempfile.TemporaryDirectory(prefix="bench-overhead-") as scratch:
        folder = Path(scratch)
        bench = Bench(folder, ("--enforce-eager",) if eager else (), progress.print)
        workload = write_workload(folder / "work.jsonl", prompt_tokens, output_tokens)
        settings = Settings(endpoint="completion", workload=str(workload))
        load = Load(settings, users, requests)
        report = one_line(lambda: _measure(bench, shape, load, rounds, starts))
    report["detail"] |= {"shape": asdict(shape), "eager": eager, "users": users}
    click.echo(json.dumps(report))


def _measure(bench: Bench, shape: Shape, load: Load, rounds: int, starts: int) -> dict[str, Any]:
    bench.tell("writing the base and building the pruned checkpoints")
    sides = make_sides(bench.folder, shape)
    detail: dict[str, Any] = {
        "weight_bytes": {
            name: Checkpoint.open(sides[name].model).num_bytes for name in ("base", "plain")
        },
    }
    if starts:
        bench.tell("servers started alone")
        constant = bench.start("tiny", Side(write_random_model(bench.folder / "tiny", _TINY)))
        begun = _starts(bench, sides, starts)
        detail |= {
            "map_only_over_base": _against(begun["base"], begun["map-only"], constant),
            "plain_over_base": _against(begun["base"], begun["plain"], constant),
            "starts": {name: [asdict(one) for one in found] for name, found in begun.items()},
            "start_of_tiny": asdict(constant),
        }
    value = None
    if rounds:
        plugin = bench.pair(("plain", "plain-pruned_moe"), sides, load, rounds)
        mapped = bench.pair(("compact-sliced", "compact-mapped"), sides, load, rounds)
        detail |= {"pruned_moe_over_auto": _shown(plugin), "mapped_over_sliced": _shown(mapped)}
        value = detail["pruned_moe_over_auto"]["tokens_per_second"]["median"]
    return {
        "name": "serving_output_tokens_per_second_plain_pruned_moe_over_auto",
        "value": value,
        "unit": "ratio",
        "detail": detail,
    }


def _starts(bench: Bench, sides: Mapping[str, Side], rounds: int) -> dict[str, list[Start]]:
    """Start each server of (c) and (d) once a round, in the opposite order every second one."""
    names = ("base", "map-only", "plain")
    found: dict[str, list[Start]] = {name: [] for name in names}
    for number in range(rounds):
        for name in reversed(names) if number % 2 else names:
            found[name].append(bench.start(name, sides[name]))
    return found


def _against(base: list[Start], other: list[Start], constant: Start) -> dict[str, Any]:
    """Ratios of each round, as they are and less what a server of a tiny model takes."""
    nothing = Start(0.0, 0.0, 0, 0)
    return {
        f"{key}{suffix}": median_of(
            [
                (getattr(o, key) - getattr(less, key)) / (getattr(b, key) - getattr(less, key))
                for b, o in zip(base, other, strict=True)
            ]
        )
        for key in ("seconds", "cpu_seconds", "peak", "resident")
        for suffix, less in (("", nothing), ("_less_tiny", constant))
    }


def _shown(ratios: Ratios) -> dict[str, Any]:
    return {
        "tokens_per_second": median_of(ratios.tokens_per_second),
        "cpu_time_per_token": median_of(ratios.cpu_per_token),
    }


if __name__ == "__main__":
    main()
