"""What counting the tokens of every expert costs in serving.

    python -m benchmarks.expert_metrics

A Mixtral with random weights, by `pruned_moe` with and without `expert_metrics`, in engines that
step in turn (``benchmarks.stepping``); one of them twice, whose ratio to itself says what this can
tell apart. The last line of stdout is one JSON object; its value is output tokens per second with
counting over those without.
"""

from __future__ import annotations

import json
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from benchmarks.dummy_model import Shape
from benchmarks.medians import median_of
from benchmarks.sides import make_sides
from benchmarks.stepping import Work, step_in_turn
from loadtest.cli import one_line

_SHAPE = Shape()


@click.command(context_settings={"show_default": True})
@click.option("--rounds", default=16, help="of each process")
@click.option("--processes", default=3, help="each loads the engines in another order")
@click.option("--users", default=8, type=click.IntRange(1, 15))
@click.option("--prompt-tokens", default=16, help="with the answer at most 128")
@click.option("--output-tokens", default=32)
@click.option("--threads", default=1, help="that the engines compute with")
@click.option("--layers", default=_SHAPE.layers)
@click.option("--hidden", default=_SHAPE.hidden, help="64 for each head")
@click.option("--intermediate", default=_SHAPE.intermediate)
@click.option("--eager/--compiled", default=True, help="without or with torch.compile")
def main(
    rounds: int,
    processes: int,
    threads: int,
    layers: int,
    hidden: int,
    intermediate: int,
    eager: bool,
    **work: int,
) -> None:
    """Measure and print one line of JSON."""
    shape = Shape(hidden, intermediate, layers, heads=hidden // 64)
    with tempfile.TemporaryDirectory(prefix="bench-expert-metrics-") as scratch:
        side = make_sides(Path(scratch), shape)["plain-pruned_moe"]
        without = side.engine(eager=eager)
        counting = {**without, "model_loader_extra_config": {"expert_metrics": True}}
        engines = {"without": without, "counting": counting, "again": without}
        found = one_line(lambda: _measure(engines, Work(**work), rounds, processes, threads))
    detail = {**found, "shape": asdict(shape), "eager": eager, "threads": threads, **work}
    name = "serving_output_tokens_per_second_expert_metrics_over_without"
    value = found["counting_over_without"]["median"]
    click.echo(json.dumps({"name": name, "value": value, "unit": "ratio", "detail": detail}))


def _measure(
    engines: dict[str, dict[str, Any]], work: Work, rounds: int, processes: int, threads: int
) -> dict[str, Any]:
    counting: list[float] = []
    again: list[float] = []
    for number in range(processes):
        names = [*engines][number % 3 :] + [*engines][: number % 3]
        took = step_in_turn({name: engines[name] for name in names}, work, rounds, threads)
        counting += [a / b for a, b in zip(took["without"], took["counting"], strict=True)]
        again += [a / b for a, b in zip(took["without"], took["again"], strict=True)]
    return {
        "counting_over_without": median_of(counting),
        "same_against_itself": median_of(again),
    }


if __name__ == "__main__":
    main()
