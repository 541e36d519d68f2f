"""How near the load test's client comes to a server whose every token is known.

    python -m benchmarks.loadtest_accuracy [--guidellm .venv-guidellm/bin/guidellm]

The scripted server of the tests runs in a process of its own: 200 ms to the first token, 20 ms a
token. At every number of users, with answers of one length (all users in step) and of many (out of
step), the client's percentiles are compared with those of the server's own log of the same run;
beside it, where vLLM is installed, those of `vllm bench serve`, and where its command is named,
those of GuideLLM. The server sends no chunk that only names the role, which vLLM's takes for the
first token. The last line of stdout is one JSON object: the largest relative error of any cell, and
in which cells another was closer by more than a thousandth. Run it on a quiet machine.
"""

from __future__ import annotations

import json
import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import click
import numpy as np

from benchmarks.other_clients import METRICS, PERCENTS, Cells, guidellm, vllm_bench
from benchmarks.scripted_server import scripted_server
from loadtest.endpoint import Endpoint
from loadtest.headless import measure
from loadtest.metrics import Quantiles, Summary
from loadtest.results import Settings
from loadtest.workload import Lengths, save_workload

_OTHERS = ("vllm", "guidellm")
_SAME = 0.001


class _Log:
    """The server's log, read on from where the last reading ended."""

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint = endpoint
        self._seen = 0
        self.requests = 0
        self.tokens = 0
        self.connections = 0

    def cells(self) -> Cells:
        """The true percentiles since the last call; counts are then those of the same time."""
        every = self._endpoint.get_json("/truth", timeout=120)
        new, self._seen = [row for row in every[self._seen :] if row["sent"]], len(every)
        self.requests, self.tokens = len(new), sum(row["tokens"] for row in new)
        self.connections = len({row["connection"] for row in new})
        values: dict[str, list[float]] = {
            "ttft": [row["sent"][0] - row["received"] for row in new],
            "tpot": [
                (row["sent"][-1] - row["sent"][0]) / (len(row["sent"]) - 1)
                for row in new
                if len(row["sent"]) > 1
            ],
            "itl": [gap for row in new for gap in np.diff(row["sent"])],
            "e2e": [row["ended"] - row["received"] for row in new],
        }
        return {
            f"{name} p{percent}": float(np.percentile(values[name], percent)) * 1000
            for name in METRICS
            for percent in PERCENTS
        }


def _ours(summary: Summary) -> Cells:
    cells: Cells = {}
    for name in METRICS:
        found: Quantiles | None = getattr(summary, f"{name}_ms")
        assert found is not None
        cells |= {f"{name} p50": found.p50, f"{name} p95": found.p95}
    return cells


def _errors(found: Cells, truth: Cells) -> Cells:
    return {name: abs(value / truth[name] - 1) for name, value in found.items()}


def _lengths(in_step: bool, tokens: int) -> Lengths:
    if in_step:
        return Lengths(distribution="constant", median=tokens, min=1, max=tokens)
    return Lengths(distribution="uniform", median=tokens, min=tokens * 2 // 5, max=tokens * 8 // 5)


@click.command(context_settings={"show_default": True})
@click.option("--users", default="1,16,64,128")
@click.option("--tokens", default=100, help="of an answer")
@click.option("--requests-per-user", default=4)
@click.option("--first", default=0.2, help="seconds to the first token")
@click.option("--gap", default=0.02, help="seconds between tokens")
@click.option("--processes", type=int, help="of the client; default: one for 64 users")
@click.option("--vllm/--no-vllm", default=True, help="vllm bench serve beside it, if there is one")
@click.option(
    "--guidellm",
    "guide",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="GuideLLM's command, to have it beside it",
)
def main(
    users: str,
    tokens: int,
    requests_per_user: int,
    first: float,
    gap: float,
    processes: int | None,
    vllm: bool,
    guide: Path | None,
) -> None:
    """Compare with the truth and print the largest error as one line of JSON."""
    beside = vllm and find_spec("vllm") is not None
    detail: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as scratch, scripted_server(first, gap) as endpoint:
        log = _Log(endpoint)
        for count in map(int, users.split(",")):
            for in_step in (True, False):
                name = f"{count} users, {'in' if in_step else 'out of'} step"
                folder = Path(scratch) / f"{count}-{in_step}"
                folder.mkdir()
                lengths, requests = _lengths(in_step, tokens), requests_per_user * count
                work = folder / "work.jsonl"
                save_workload(work, [f"question {n}" for n in range(64)], lengths)
                row = _of_ours(endpoint, log, count, requests, processes, work)
                if beside:
                    found = vllm_bench(endpoint, count, requests, lengths, folder)
                    row |= _beside("vllm", found, log.cells())
                if guide is not None:
                    found = guidellm(guide, endpoint, count, requests, work, folder)
                    row |= _beside("guidellm", found, log.cells())
                detail[name] = row
                _show(name, row)
    click.echo(json.dumps(_report(detail)))


def _of_ours(
    endpoint: Endpoint, log: _Log, users: int, requests: int, processes: int | None, work: Path
) -> dict[str, Any]:
    settings = Settings(workload=str(work), requests=requests, processes=processes)
    found = measure(endpoint.url, users, settings, work.with_name("r.jsonl"))
    row = _beside("ours", _ours(found.summary), log.cells())
    counts = (found.summary.requests, found.summary.output_tokens)
    return row | {
        "exact_counts": counts == (log.requests, log.tokens),
        "connections": log.connections,
        "client": found.health.model_dump(),
    }


def _beside(who: str, found: Cells, truth: Cells) -> dict[str, Any]:
    return {who: found, f"{who}_truth": truth, f"{who}_error": _errors(found, truth)}


def _report(detail: dict[str, Any]) -> dict[str, Any]:
    worst = {
        who: round(max(errors), 4)
        for who in ("ours", *_OTHERS)
        if (errors := [e for row in detail.values() for e in row.get(f"{who}_error", {}).values()])
    }
    closer = {
        who: [
            f"{name}: {cell}"
            for name, row in detail.items()
            for cell, error in row.get(f"{who}_error", {}).items()
            if error < row["ours_error"][cell] - _SAME
        ]
        for who in _OTHERS
        if who in worst
    }
    return {
        "name": "loadtest_worst_relative_error",
        "value": worst["ours"],
        "unit": "ratio",
        "detail": {
            "worst": worst,
            "another_was_closer": closer,
            "exact_counts": all(row["exact_counts"] for row in detail.values()),
            "runs": detail,
        },
    }


def _show(name: str, row: dict[str, Any]) -> None:
    click.echo(f"{name} (counts {'exact' if row['exact_counts'] else 'WRONG'})", err=True)
    for who in ("ours", *_OTHERS):
        if who in row:
            truth = row[f"{who}_truth"]
            cells = (
                f"{cell} {value:.1f} (true {truth[cell]:.1f})" for cell, value in row[who].items()
            )
            click.echo(f"  {who}: {', '.join(cells)}", err=True)


if __name__ == "__main__":
    main()
