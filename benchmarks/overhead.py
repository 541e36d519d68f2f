"""What the plugin costs in serving, and what a pruned model saves at its start.

    python -m benchmarks.overhead

A Mixtral with random weights on disk, everything in one run:

(a) a plain checkpoint with `pruned_moe` against `auto`: output tokens per second
(b) one map as a compact checkpoint, with mapped against with sliced routers: the same
(c) a map applied while the base loads, against the base: start-up time and peak memory
(d) a plain checkpoint with half of the experts, against the base: start-up time and memory

Of (a) and (b) the engines step in turn (``benchmarks.stepping``), one of them twice: its ratio to
itself says what this can tell apart. Of (c) and (d) every `vllm serve` starts alone. The last line
of stdout is one JSON object; its value is (a).
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

from benchmarks.dummy_model import Shape
from benchmarks.engine_options import Setup, engine_options
from benchmarks.medians import median_of
from benchmarks.random_model import write_random_model
from benchmarks.sides import Side, make_sides
from benchmarks.stepping import Work, step_in_turn
from loadtest.cli import one_line
from vllm_moe_prune.checkpoint import Checkpoint

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
    """How everything is served, where the logs are, and who is told what happens."""

    folder: Path
    sides: Mapping[str, Side]
    eager: bool
    threads: int
    tell: Callable[[str], None]

    def start(self, name: str, side: Side) -> Start:
        """Start a server alone and end it."""
        with side.server(self.folder / f"{name}.log", eager=self.eager) as server:
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

    def starts(self, rounds: int) -> dict[str, list[Start]]:
        """Start each server of (c) and (d) once a round, in turned order every second one."""
        names = ("base", "map-only", "plain")
        found: dict[str, list[Start]] = {name: [] for name in names}
        for number in range(rounds):
            for name in reversed(names) if number % 2 else names:
                found[name].append(self.start(name, self.sides[name]))
        return found

    def speed(self, first: str, second: str, work: Work, rounds: int, processes: int) -> Any:
        """Output tokens per second of the second side over the first, and of the first over itself.

        Where a process puts its weights may favour one engine as long as it lives, so there are
        several processes, which load the engines in other orders.
        """
        ratios: list[float] = []
        control: list[float] = []
        each = []
        for number in range(processes):
            names = [first, second, "again"]
            names = names[number % 3 :] + names[: number % 3]
            sides = {name: self.sides[first if name == "again" else name] for name in names}
            engines = {name: side.engine(eager=self.eager) for name, side in sides.items()}
            took = step_in_turn(engines, work, rounds, self.threads)
            own = [a / b for a, b in zip(took[first], took[second], strict=True)]
            ratios += own
            control += [a / b for a, b in zip(took[first], took["again"], strict=True)]
            each.append(median_of(own)["median"])
            tokens = rounds * work.users * work.output_tokens
            self.tell(
                f"  {second} over {first}, process {number + 1} of {processes}: "
                f"{tokens / sum(took[first]):.1f} and {tokens / sum(took[second]):.1f} output "
                f"tokens/s, median ratio {each[-1]}"
            )
        return {
            "tokens_per_second": median_of(ratios),
            "same_against_itself": median_of(control),
            "medians_of_processes": each,
        }


@click.command(context_settings={"show_default": True})
@engine_options
@click.option("--rounds", default=20, help="of each process of (a) and (b); 0 leaves both out")
@click.option("--processes", default=3, help="of (a) and of (b)")
@click.option("--starts", default=2, help="of every server of (c) and (d); 0 leaves both out")
def main(setup: Setup, rounds: int, processes: int, starts: int) -> None:
    """Measure all four and print one line of JSON."""
    progress = Console(stderr=True, highlight=False, markup=False, soft_wrap=True)
    with tempfile.TemporaryDirectory(prefix="bench-overhead-") as scratch:
        folder = Path(scratch)
        progress.print("writing the base and building the pruned checkpoints")
        sides = make_sides(folder, setup.shape)
        bench = Bench(folder, sides, setup.eager, setup.threads, progress.print)
        report = one_line(lambda: _measure(bench, setup.work, rounds, processes, starts))
    report["detail"] |= setup.detail()
    click.echo(json.dumps(report))


def _measure(bench: Bench, work: Work, rounds: int, processes: int, starts: int) -> dict[str, Any]:
    sizes = {name: Checkpoint.open(bench.sides[name].model).num_bytes for name in ("base", "plain")}
    detail: dict[str, Any] = {"weight_bytes": sizes}
    if starts:
        bench.tell("servers started alone")
        constant = bench.start("tiny", Side(write_random_model(bench.folder / "tiny", _TINY)))
        begun = bench.starts(starts)
        detail |= {
            "map_only_over_base": _against(begun["base"], begun["map-only"], constant),
            "plain_over_base": _against(begun["base"], begun["plain"], constant),
            "starts": {name: [asdict(one) for one in found] for name, found in begun.items()},
            "start_of_tiny": asdict(constant),
        }
    value = None
    if rounds:
        bench.tell("engines that step in turn")
        plugin = bench.speed("plain", "plain-pruned_moe", work, rounds, processes)
        mapped = bench.speed("compact-sliced", "compact-mapped", work, rounds, processes)
        detail |= {"pruned_moe_over_auto": plugin, "mapped_over_sliced": mapped}
        value = plugin["tokens_per_second"]["median"]
    return {
        "name": "serving_output_tokens_per_second_plain_pruned_moe_over_auto",
        "value": value,
        "unit": "ratio",
        "detail": detail,
    }


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


if __name__ == "__main__":
    main()
