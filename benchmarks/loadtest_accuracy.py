"""How near the load test's client comes to a server whose every token is known.

    python -m benchmarks.loadtest_accuracy

The scripted server of the tests runs in a process of its own: 200 ms to the first token, 20 ms a
token. At every number of users, with answers of one length (all users in step) and of many (out of
step), the client's percentiles are compared with those of the server's own log of the same run;
beside it, where vLLM is installed, those of `vllm bench serve`; the server sends no chunk that only
names the role, which that takes for the first token. The last line of stdout is one
JSON object: the largest relative error of any cell. Run it on a quiet machine.
"""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import click
import numpy as np

from benchmarks.dummy_model import write_tokenizer
from benchmarks.scripted_server import scripted_server
from loadtest.endpoint import Endpoint
from loadtest.headless import measure
from loadtest.metrics import Quantiles, Summary
from loadtest.results import Settings
from loadtest.workload import Lengths, save_workload
from serve.process import python_module

_ROOT = Path(__file__).parents[1]
_METRICS = ("ttft", "tpot", "itl", "e2e")
_PERCENTS = (50, 95)
_VLLM_NAMES = {"ttft": "ttft", "tpot": "tpot", "itl": "itl", "e2e": "e2el"}

Cells = dict[str, float]


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
            for name in _METRICS
            for percent in _PERCENTS
        }


def _ours(summary: Summary) -> Cells:
    cells = {}
    for name in _METRICS:
        found: Quantiles | None = getattr(summary, f"{name}_ms")
        assert found is not None
        cells |= {f"{name} p50": found.p50, f"{name} p95": found.p95}
    return cells


def _vllm(endpoint: Endpoint, users: int, requests: int, lengths: Lengths, folder: Path) -> Cells:
    """The same load by `vllm bench serve`; its lengths are uniform where ours are drawn."""
    write_tokenizer(folder, 32000)
    mean = lengths.median
    spread = 0.0 if lengths.distribution == "constant" else 0.6
    words: Sequence[object] = [
        *("bench", "serve", "--backend", "openai-chat", "--base-url", endpoint.url),
        *("--endpoint", "/v1/chat/completions", "--model", "plain", "--tokenizer", folder),
        *("--dataset-name", "random", "--random-input-len", 20, "--random-output-len", mean),
        *(
            "--random-range-ratio",
            json.dumps({"input": 0.0, "output": spread}),
            "--num-prompts",
            requests,
            "--ignore-eos",
        ),
        *("--max-concurrency", users, "--num-warmups", min(users, 4), "--percentile-metrics"),
        *("ttft,tpot,itl,e2el", "--metric-percentiles", "50,95", "--save-result"),
        *("--result-dir", folder, "--result-filename", "result.json", "--disable-tqdm"),
    ]
    subprocess.run(
        [*python_module("serve.launch"), *map(str, words)],
        check=True,
        stdout=subprocess.DEVNULL,
        env={**os.environ, "PYTHONPATH": str(_ROOT), "HF_HUB_OFFLINE": "1"},
    )
    found: dict[str, Any] = json.loads((folder / "result.json").read_text())
    return {
        f"{name} p{percent}": found[f"p{percent}_{_VLLM_NAMES[name]}_ms"]
        for name in _METRICS
        for percent in _PERCENTS
    }


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
def main(
    users: str,
    tokens: int,
    requests_per_user: int,
    first: float,
    gap: float,
    processes: int | None,
    vllm: bool,
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
                file = folder / "work.jsonl"
                save_workload(file, [f"question {n}" for n in range(64)], lengths)
                settings = Settings(workload=str(file), requests=requests, processes=processes)
                found = measure(endpoint.url, count, settings, folder / "r.jsonl")
                truth = log.cells()
                exact = (found.summary.requests, found.summary.output_tokens) == (
                    log.requests,
                    log.tokens,
                )
                row: dict[str, Any] = {
                    "truth": truth,
                    "ours": _ours(found.summary),
                    "ours_error": _errors(_ours(found.summary), truth),
                    "exact_counts": exact,
                    "connections": log.connections,
                    "client": found.health.model_dump(),
                }
                if beside:
                    theirs = _vllm(endpoint, count, requests, lengths, folder)
                    row["vllm_truth"] = log.cells()
                    row["vllm"] = theirs
                    row["vllm_error"] = _errors(theirs, row["vllm_truth"])
                detail[name] = row
                _show(name, row)
    worst = {
        who: max(max(row[who].values()) for row in detail.values() if who in row)
        for who in ("ours_error", "vllm_error")
        if any(who in row for row in detail.values())
    }
    report = {
        "name": "loadtest_worst_relative_error",
        "value": round(worst["ours_error"], 4),
        "unit": "ratio",
        "detail": {
            "vllm_bench": worst.get("vllm_error"),
            "exact_counts": all(row["exact_counts"] for row in detail.values()),
            "runs": detail,
        },
    }
    click.echo(json.dumps(report))


def _show(name: str, row: dict[str, Any]) -> None:
    click.echo(f"{name} (counts {'exact' if row['exact_counts'] else 'WRONG'})", err=True)
    for who in ("ours", "vllm"):
        if who in row:
            truth = row["truth" if who == "ours" else "vllm_truth"]
            cells = (
                f"{cell} {value:.1f} (true {truth[cell]:.1f})" for cell, value in row[who].items()
            )
            click.echo(f"  {who}: {', '.join(cells)}", err=True)


if __name__ == "__main__":
    main()
