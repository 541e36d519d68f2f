"""The log of evaluations: nothing twice, nothing lost, nothing of another run."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from offline.engines.base import ItemResult, TaskResult
from offline.evaluations import Evaluations, run_folder
from offline.tasks.catalog import Task
from tests.vllm_moe_prune.bare import layer_fields, map_of
from vllm_moe_prune.errors import PruneError

TASK = Task("colours", "acc")
ONE = map_of()
TWO = map_of(layer_fields(experts={"kept": [0, 1, 2]}))


@dataclass
class FakeEngine:
    """Notes what it is asked; the answer is 1 if the map keeps expert 6."""

    asked: list[Any] = field(default_factory=list)
    applied: Any = None

    def apply(self, routing_map: Any) -> None:
        self.applied = routing_map

    def evaluate(self, task: Task, split: str, limit: int | None = None) -> TaskResult:
        self.asked.append((self.applied and self.applied.digest(), split, limit))
        kept = self.applied.layers[0].experts.kept if self.applied else (6,)
        items = (ItemResult("item-1", float(6 in kept), 0.25, "red"),)
        return TaskResult(task.name, split, items, tokens=9, seconds=0.5)


def evaluations(folder: Path) -> tuple[Evaluations, FakeEngine]:
    engine: Any = FakeEngine()
    return Evaluations(folder / "evaluations.jsonl", engine), engine


def test_nothing_is_evaluated_twice_in_a_run_or_after_it(tmp_path: Path) -> None:
    first, engine = evaluations(tmp_path)
    results = [first(m, TASK, "search", 5) for m in (None, ONE, TWO, ONE, None)]
    assert [r.accuracy for r in results] == [1, 1, 0, 1, 1]
    assert len(engine.asked) == first.fresh == 3
    again, engine = evaluations(tmp_path)
    assert [again(m, TASK, "search", 5) for m in (None, ONE, TWO, ONE, None)] == results
    assert (engine.asked, again.fresh) == ([], 0)


def test_map_task_split_and_limit_each_make_another_evaluation(tmp_path: Path) -> None:
    log, engine = evaluations(tmp_path)
    log(ONE, TASK, "search", 5)
    log(ONE, TASK, "test", 5)
    log(ONE, TASK, "search", 6)
    log(ONE, TASK, "search", None)
    log(ONE, Task("other", "acc"), "search", 5)
    log(TWO, TASK, "search", 5)
    assert len(engine.asked) == 6
    assert engine.asked[-1] == (TWO.digest(), "search", 5)


def test_a_line_that_a_kill_cut_off_is_dropped_and_evaluated_again(tmp_path: Path) -> None:
    log, _ = evaluations(tmp_path)
    log(ONE, TASK, "search", 5)
    log(TWO, TASK, "search", 5)
    whole = log.file.read_bytes()
    log.file.write_bytes(whole[:-7])
    again, engine = evaluations(tmp_path)
    again(ONE, TASK, "search", 5)
    again(TWO, TASK, "search", 5)
    assert engine.asked == [(TWO.digest(), "search", 5)]
    assert log.file.read_bytes() == whole


IDENTITY = {"recipe": {"keep": 4}, "base": {"config": "c"}}


def test_a_run_continues_with_the_same_settings(tmp_path: Path) -> None:
    folder = run_folder(tmp_path / "out", IDENTITY, force=False)
    assert folder == tmp_path / "out.run"
    (folder / "evaluations.jsonl").write_text("kept")
    for force in (False, True):
        assert run_folder(tmp_path / "out", dict(reversed(IDENTITY.items())), force=force) == folder
        assert (folder / "evaluations.jsonl").read_text() == "kept"


def test_a_run_with_other_settings_is_refused_and_with_force_begun_anew(tmp_path: Path) -> None:
    folder = run_folder(tmp_path / "out", IDENTITY, force=False)
    (folder / "evaluations.jsonl").write_text("old")
    other = IDENTITY | {"recipe": {"keep": 3}}
    with pytest.raises(PruneError) as caught:
        run_folder(tmp_path / "out", other, force=False)
    assert caught.value.message == f"{folder} holds a run with other settings or another base"
    assert (folder / "evaluations.jsonl").read_text() == "old"
    run_folder(tmp_path / "out", other, force=True)
    assert [file.name for file in folder.iterdir()] == ["settings.json"]
