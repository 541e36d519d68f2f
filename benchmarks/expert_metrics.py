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
from pathlib import Path
from typing import Any

import click

from benchmarks.engine_options import Setup, engine_options
from benchmarks.medians import median_of
from benchmarks.sides import make_sides
from benchmarks.stepping import Work, step_in_turn
from loadtest.cli import one_line


@click.command(context_settings={"show_default": True})
@engine_options
@click.option("--rounds", default=16, help="of each process")
@click.option("--processes", default=3, help="each loads the engines in another order")
def main(setup: Setup, rounds: int, processes: int) -> None:
    """Measure and print one line of JSON."""
    with tempfile.TemporaryDirectory(prefix="bench-expert-metrics-") as scratch:
        side = make_sides(Path(scratch), setup.shape)["plain-pruned_moe"]
        without = side.engine(eager=setup.eager)
        counting = {**without, "model_loader_extra_config": {"expert_metrics": True}}
        engines = {"without": without, "counting": counting, "again": without}
        found = one_line(lambda: _measure(engines, setup.work, rounds, processes, setup.threads))
    name = "serving_output_tokens_per_second_expert_metrics_over_without"
    value = found["counting_over_without"]["median"]
    detail = {**found, **setup.detail()}
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
