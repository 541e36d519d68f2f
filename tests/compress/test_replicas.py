"""Two replicas of a real engine through Ray find what one engine finds."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from offline.compress.compress import compress
from offline.compress.recipe.reading import recipe_of
from tests.compress.test_eep import SETTINGS
from tests.sample_runs import Listener, log_of
from tests.tiny import make_tiny_mixtral
from vllm_moe_prune.routing_map import RoutingMap


@pytest.mark.slow
def test_two_replicas_give_the_log_and_the_map_of_one_engine(
    task_file: Path, tmp_path: Path, users_folder: Path
) -> None:
    """Paths may be relative, and the user may have modules that are called like ours."""
    model = make_tiny_mixtral(tmp_path / "tiny")
    model, task_file = (Path(os.path.relpath(path, users_folder)) for path in (model, task_file))
    found = {}
    for replicas in (1, 2):
        out = tmp_path / f"with-{replicas}"
        more: dict[str, Any] = {"keep": 4, "replicas": replicas, "compare": "frequency"}
        settings = SETTINGS | {"model": model, "task": str(task_file)} | more
        compress(recipe_of(settings), out, reporter=Listener())
        lines = sorted((e["digest"], e["kind"], str(_values(e))) for e in log_of(out))
        found[replicas] = (RoutingMap.load(out).digest(), lines)
    assert found[1] == found[2]


def _values(entry: dict[str, Any]) -> Any:
    """Return a line's results without what depends on the clock."""
    return {
        task: {k: v for k, v in fields.items() if k != "seconds"}
        for task, fields in entry["results"].items()
    }
