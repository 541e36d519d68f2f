"""CONTRIBUTING.md's recipe for a one-shot method, followed: a function and a line in `ONE_SHOT`."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from offline.results.compression import RunResult
from tests.report.page import Page
from vllm_moe_prune.routing_map import RoutingMap

# What the recipe says, done before anything else reads the table.
ADDED = """
from offline.methods import baselines

def _last_ids(space, seen, rng, groups):
    counts = space.even_counts()
    return {n: tuple(range(e - counts[n], e)) for n, e in space.num_experts.items()}

baselines.ONE_SHOT["last_ids"] = baselines.OneShot(_last_ids)

from offline.cli.main import main
main()
"""


def test_a_method_in_the_table_can_be_run_compared_with_and_shown(
    model: Path, task_file: Path, tmp_path: Path
) -> None:
    said = " ".join((Path(__file__).parents[2] / "CONTRIBUTING.md").read_text().split())
    assert "a function and a line of `ONE_SHOT` in `offline/methods/baselines.py`" in said
    out = tmp_path / "out"
    words = ["compress", "--model", str(model), "--task", str(task_file), "--keep", "3"]
    words += ["--device", "cpu", "--dtype", "float32", "--out", str(out)]
    words += ["--method", "last_ids", "--compare", "frequency,last_ids"]
    done = subprocess.run(
        [sys.executable, "-c", ADDED, *words], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    routing_map = RoutingMap.load(out)
    assert [layer.experts.kept for layer in routing_map.layers] == [(5, 6, 7)] * 2
    assert routing_map.provenance.method == "last_ids"
    result = RunResult.load(out)
    assert [q.variant for q in result.quality] == ["base", "frequency", "last_ids"]
    page = Page((out / "report.html").read_text())
    shown = page.table(f"Accuracy on the held-out split of {result.task}").column("variant")
    assert shown == ["base", "frequency", "last_ids"]
