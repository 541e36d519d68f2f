"""`vmprune demo run`: make, compress, serve, load-test, judge and report, on the embedded model."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from offline.compress.compress import compress
from offline.compress.recipe.reading import recipe_of
from offline.compress.text import text_of
from offline.demo.model import make_demo_model
from offline.gates.evidence import evidence_in
from offline.gates.gates import read_gates
from offline.gates.judge import judge
from offline.report.judged import gates_table, verdict_of
from offline.report.pages import draw
from offline.report.printed import printed
from offline.results.compression import RunResult
from offline.results.gates import GatesResult
from offline.runs.progress import Reporter
from serve.process import python_module
from vllm_moe_prune.errors import PruneError
from vllm_moe_prune.provenance import write_atomic
from vllm_moe_prune.reading import read_object

SERVING_FILE = "serving.json"
GATES = Path(__file__).with_name("gates.yaml")
# Sized for a few minutes on two cores: a search this short finds less than the defaults would.
# The task is one that the model was not trained on and that pruning at random hurts.
_RECIPE = {"task": "basic_skills_coding", "keep": 4}
_SEARCH = {"evaluations": 24, "prune_evaluations": 16, "initial": 8, "children": 4}
_ITEMS = {"search_items": 40, "selection_items": 40, "test_items": 120}
_LESS = {"finalists": 3, "random_maps": 2}
_LOAD = (
    *("--rounds", "1", "--duration", "20s", "--max-tokens", "48", "--enforce-eager"),
    *("--client-lag-ms", "0"),  # client and servers share a laptop: it shows, it does not fail
)

Progress = Callable[[], AbstractContextManager[Reporter]]


def run_demo(out: Path, *, users: int, progress: Progress) -> None:
    """Do the whole job in ``out``; steps whose output is there already are not repeated.

    It ends with what `GATES` say of the pruned model, and well whatever they say.

    :raises PruneError: as the steps do
    """
    if out.exists() and not out.is_dir():
        raise PruneError(f"{out} is not a folder", hint="choose another --out")
    out.mkdir(parents=True, exist_ok=True)
    base, pruned = out / "base", out / "pruned"
    gates = read_gates(GATES)
    if pruned.exists():
        RunResult.load(pruned)  # refuses what no run wrote, before hours of work on it
    with progress() as reporter:
        if not base.exists():
            make_demo_model(base, reporter=reporter)
        if not pruned.exists():
            recipe = recipe_of({"model": base, **_RECIPE, **_SEARCH, **_ITEMS, **_LESS})
            texts = text_of(gates, recipe.method.seed)
            compress(recipe, pruned, reporter=reporter, texts=texts)
    if not (pruned / SERVING_FILE).exists():
        _load_test(base, pruned, out / "load", users)
    judged = judge(gates, evidence_in(pruned), pruned.name)
    judged.save(pruned)
    report = draw(pruned)
    _show(RunResult.load(pruned), read_object(pruned / SERVING_FILE), users)
    _conclude(judged)
    print(f"report: {report}")


def _load_test(base: Path, pruned: Path, out: Path, users: int) -> None:
    """Run the load-test room as a user would: it imports nothing of ours but the server."""
    command = [*python_module("loadtest.compare"), "--base", str(base)]
    command += ["--candidate", str(pruned), "--candidate-load-format", "pruned_moe"]
    command += ["--users", str(users), "--out", str(out), *_LOAD]
    if subprocess.run(command, check=False).returncode != 0:
        raise PruneError("the load test did not end well", hint=f"its logs are in {out}")
    write_atomic(pruned / SERVING_FILE, (out / "compare.json").read_bytes())


def _show(result: RunResult, serving: dict[str, Any], users: int) -> None:
    from rich.console import Console
    from rich.table import Table

    from offline.runs.units import gib

    table = Table("", "base", "pruned", title="demo: base against pruned")
    for column in table.columns[1:]:
        column.justify = "right"
    sizes = (result.base_size, result.pruned_size)
    table.add_row("experts", *(str(size.experts) for size in sizes))
    table.add_row("on disk", *(gib(size.num_bytes) for size in sizes))
    for variant, split in (("frequency", "test"), ("random", "test"), (result.method, "test")):
        before, after = result.quality_of("base", split), result.quality_of(variant, split)
        if before and after:
            title = f"{result.task} accuracy, {variant} ({after.items} held-out items)"
            table.add_row(title, f"{before.accuracy:.3f}", f"{after.accuracy:.3f}")
    for metric, title in _METRICS.items():
        values = [_median(serving, side, metric, users) for side in ("base", "candidate")]
        table.add_row(title, *(f"{value:.1f}" for value in values))
    Console().print(table)


def _conclude(judged: GatesResult) -> None:
    from rich.console import Console

    verdict = verdict_of(judged)
    Console().print(printed(gates_table(judged)))
    print(f"{verdict.word} {verdict.said}")


_METRICS = {
    "ttft_ms": "time to first token, p50 (ms)",
    "itl_ms": "inter-token latency, p50 (ms)",
    "output_tokens_per_second": "output tokens per second",
}


def _median(serving: dict[str, Any], side: str, metric: str, users: int) -> float:
    """Return one side's metric at ``users``, the mean over its servers' lifetimes."""
    values = []
    for life in serving["lifetimes"]:
        for point in life["points"]:
            if life["side"] == side and point["users"] == users:
                value = point[metric]
                values.append(value["p50"] if isinstance(value, dict) else value)
    return float(sum(values) / len(values))
