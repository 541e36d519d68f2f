"""What a comparison says of a server against itself, and against one exactly twice as fast.

    python -m benchmarks.compare_itself --out DIR

The scripted server of the tests takes a random factor of its own for each request, as a real one
does. It is compared with itself, ``--runs`` times: of every ratio is counted in how many runs its
95 % interval holds 1. Then one whose every delay is twice as long is compared with the other half,
both without random factors: in every row of latency 0.5 is true, in those of tokens per second 2.
A comparison that lies in DIR already is not made again. The last line of stdout is one JSON object,
whose value is the smallest of the counts, as a share of the runs.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from benchmarks.scripted_server import scripted_server
from loadtest.cli import one_line
from loadtest.compare import CompareResult, Settings, Target, compare
from loadtest.endpoint import Endpoint
from loadtest.results import load_result
from loadtest.workload import Lengths, save_workload


@click.command(context_settings={"show_default": True})
@click.option("--out", required=True, type=click.Path(file_okay=False, path_type=Path))
@click.option("--runs", default=20, type=click.IntRange(min=1), help="against itself")
@click.option("--twice", default=1, type=click.IntRange(min=0), help="against twice as fast")
@click.option("--rounds", default=3, type=click.IntRange(min=1))
@click.option("--users", default=4, type=click.IntRange(min=1))
@click.option("--requests", default=16, type=click.IntRange(min=1))
@click.option("--tokens", default=12, help="of an answer; half to one and a half of it")
@click.option("--first", default=0.3, help="seconds to the first token of the faster one")
@click.option("--gap", default=0.05, help="seconds between its tokens")
@click.option("--jitter", default=0.1, help="of a request's factor: its logarithm's deviation")
def main(
    out: Path,
    runs: int,
    twice: int,
    rounds: int,
    users: int,
    requests: int,
    tokens: int,
    first: float,
    gap: float,
    jitter: float,
) -> None:
    """Compare, count and print one line of JSON."""
    out.mkdir(parents=True, exist_ok=True)
    lengths = Lengths(distribution="uniform", min=-(-tokens // 2), max=tokens * 3 // 2)
    work = out / "work.jsonl"
    save_workload(work, [f"question {number}" for number in range(64)], lengths)
    settings = Settings(
        users=(users,),
        rounds=rounds,
        requests=requests,
        workload=str(work),
        natural_requests=0,
        client_lag_ms=0,  # the machine is as busy as it is: that is what is to be seen
    )

    def made(name: str, base: Endpoint, candidate: Endpoint) -> CompareResult:
        file = out / name / "compare.json"
        if file.exists():
            return load_result(file)
        click.echo(name, err=True)
        sides = {"base": Target(base.url), "candidate": Target(candidate.url)}
        return one_line(lambda: compare(sides, settings, out / name))

    with scripted_server(first, gap, jitter) as server:
        itself = [made(f"itself-{number + 1:02}", server, server) for number in range(runs)]
    with (
        scripted_server(2 * first, 2 * gap) as slow,
        scripted_server(first, gap) as fast,
    ):
        half = [made(f"twice-{number + 1:02}", slow, fast) for number in range(twice)]
    counts = holding(itself)
    report = {
        "name": "loadtest_compare_itself_least_share_of_intervals_with_1",
        "value": min(counts.values()) / runs,
        "unit": "ratio",
        "detail": {
            "runs": runs,
            "runs_whose_interval_has_1": counts,
            "runs_where_all_have": sum(all(map(_has_1, run.ratios)) for run in itself),
            "median_width": _widths(itself),
            "twice_as_fast": [against_truth(run) for run in half],
            "settings": settings.model_dump(mode="json", exclude_defaults=True),
            **{"first": first, "gap": gap, "jitter": jitter},
        },
    }
    click.echo(json.dumps(report))


def _has_1(ratio: Any) -> bool:
    return ratio.low is not None and bool(ratio.low <= 1 <= ratio.high)


def holding(runs: list[CompareResult]) -> dict[str, int]:
    """In how many runs the interval of each metric holds 1."""
    names = dict.fromkeys(ratio.metric for run in runs for ratio in run.ratios)
    ratios = [ratio for run in runs for ratio in run.ratios]
    return {name: sum(r.metric == name and _has_1(r) for r in ratios) for name in names}


def _widths(runs: list[CompareResult]) -> dict[str, float]:
    """The median width of each metric's interval."""
    widths: dict[str, list[float]] = {}
    for ratio in (ratio for run in runs for ratio in run.ratios):
        if ratio.low is not None and ratio.high is not None:
            widths.setdefault(ratio.metric, []).append(ratio.high - ratio.low)
    return {name: round(sorted(found)[len(found) // 2], 4) for name, found in widths.items()}


def against_truth(run: CompareResult) -> dict[str, Any]:
    """Each metric's ratio of one that is twice as fast, and the furthest from its truth."""
    true = {
        r.metric: 1.0 if r.higher_is_better is None else 2.0 if r.higher_is_better else 0.5
        for r in run.ratios
    }
    off = {r.metric: abs(r.median / true[r.metric] - 1) for r in run.ratios}
    worst = max(off, key=lambda name: off[name])
    ratios = {r.metric: (r.median, r.low, r.high) for r in run.ratios}
    return {"ratios": ratios, "furthest": worst, "off_by": round(off[worst], 4)}


if __name__ == "__main__":
    main()
