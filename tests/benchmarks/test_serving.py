"""What benchmarks of serving compute of what they measured, and the options that they share."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from benchmarks.compare_itself import against_truth, holding
from benchmarks.dummy_model import Shape
from benchmarks.engine_options import Setup, engine_options
from benchmarks.serving_budget import budget
from benchmarks.soak import growth
from benchmarks.stepping import Work
from loadtest.metrics import Record, summarise
from loadtest.results import CompareResult, Lifetime, Ratio, Settings
from loadtest.server_metrics import ServerUse


def test_growth_is_of_what_follows_the_warm_up() -> None:
    assert growth([10, *[100] * 18, 106]) == pytest.approx(0.03)  # the last tenth: 100 and 106
    assert growth([100] * 20) == 0
    assert growth([100, 120]) == pytest.approx(0.0)  # no time to warm up in


def lifetime(folder: Path, side: str, round_: int, decode: float, whole: float) -> Lifetime:
    file = folder / "rounds" / f"{round_ + 1}-{side}" / "users-2.jsonl"
    file.parent.mkdir(parents=True)
    record = Record(kind="chat", started=0, arrivals=(0.1,), ended=whole / 1000)
    failed = record.model_copy(update={"error": "no", "ended": 99.0})
    file.write_text("".join(r.model_dump_json() + "\n" for r in (record, failed)))
    return Lifetime(
        side=side,
        round=round_,
        model="m",
        version=None,
        startup_seconds=None,
        peak_bytes=None,
        natural_output_tokens=None,
        points=(summarise([record], 2),),
        servers=(ServerUse(samples=2, queue_ms=5, prefill_ms=20, decode_ms=decode),),
    )


def comparison(lives: Sequence[Lifetime] = (), ratios: Sequence[Ratio] = ()) -> CompareResult:
    return CompareResult(
        base="a",
        candidate="b",
        settings=Settings(users=(2,)),
        server_arguments=(),
        created="now",
        lifetimes=tuple(lives),
        ratios=tuple(ratios),
    )


def ratio(metric: str, better: bool | None, ends: tuple[float, float, float]) -> Ratio:
    low, middle, high = ends
    return Ratio(
        metric=metric,
        users=2,
        per_round=(middle,),
        median=middle,
        higher_is_better=better,
        low=low,
        high=high,
    )


def test_intervals_that_hold_1_are_counted_and_the_furthest_from_half_is_named() -> None:
    one = [ratio("ttft", False, (0.4, 0.51, 1.2)), ratio("speed", True, (1.01, 1.9, 2.0))]
    other = [ratio("ttft", False, (1.0, 1.0, 1.0)), ratio("speed", True, (0.9, 2.0, 3.0))]
    assert holding([comparison(ratios=r) for r in (one, other)]) == {"ttft": 2, "speed": 1}
    found = against_truth(comparison(ratios=one))
    assert (found["furthest"], found["off_by"]) == ("speed", 0.05)


def test_a_budget_adds_part_to_part_on_both_sides(tmp_path: Path) -> None:
    lives = [lifetime(tmp_path, "base", n, 160, 200) for n in range(2)]
    lives += [lifetime(tmp_path, "pruned", n, 80, 120) for n in range(2)]
    found = budget(comparison(lives), tmp_path)["2"]
    parts = {"decode": 160, "prefill": 20, "waiting": 5, "http_and_client": 15}
    assert found["milliseconds"]["base"] == parts
    assert found["base_over_side"]["pruned"] == {
        "up_to_decode": 2.0,
        "up_to_prefill": 1.8,
        "up_to_waiting": pytest.approx(185 / 105, abs=1e-3),
        "up_to_http_and_client": pytest.approx(200 / 120, abs=1e-3),
    }


def test_options_of_engines_become_one_setup() -> None:
    seen: list[tuple[Setup, int]] = []

    @click.command()
    @engine_options
    @click.option("--rounds", default=3)
    def command(setup: Setup, rounds: int) -> None:
        seen.append((setup, rounds))

    words = ["--rounds", "5", "--hidden", "128", "--layers", "2", "--compiled", "--users", "4"]
    done = CliRunner().invoke(command, words)
    assert done.exit_code == 0, done.output
    setup, rounds = seen[0]
    assert rounds == 5 and setup.shape == Shape(128, Shape().intermediate, 2, heads=2)
    assert setup.work == Work(4, 16, 32) and not setup.eager and setup.threads == 1
    assert setup.detail()["shape"]["layers"] == 2 and setup.detail()["users"] == 4
