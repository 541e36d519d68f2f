from __future__ import annotations

from typing import get_args

import pytest

from offline.tasks.catalog import TASKS, Kind, check_split, get_task
from vllm_moe_prune.errors import PruneError


def test_every_task_is_found_by_its_name() -> None:
    assert all(get_task(name).name == name for name in TASKS)
    assert {"sciq", "piqa", "arc_easy", "hellaswag"} < TASKS.keys()
    assert sum(name.startswith("basic_skills_") for name in TASKS) == 9


def test_each_kind_has_tasks_and_its_own_metrics() -> None:
    metrics = {
        kind: found
        for kind in get_args(Kind)
        if (found := {t.metric for t in TASKS.values() if t.kind == kind})
    }
    assert metrics == {
        "choice": {"acc", "acc_norm"},
        "generate": {"exact_match", "contains", "first_word"},
        "text": {"agreement"},
    }
    assert all((t.generation is not None) == (t.kind == "generate") for t in TASKS.values())


def test_unknown_task_names_the_closest_and_not_all() -> None:
    with pytest.raises(PruneError, match=r"unknown task 'arc_esay'.*did you mean arc_easy") as said:
        get_task("arc_esay")
    assert len(str(said.value)) < 400


def test_absent_task_file_is_named() -> None:
    with pytest.raises(PruneError, match=r"no task file at nowhere/mine\.yaml"):
        get_task("nowhere/mine.yaml")


def test_unknown_split_names_the_three() -> None:
    with pytest.raises(PruneError, match="search, selection, test"):
        check_split("train")


def test_examples_are_asked_for_behind_the_name() -> None:
    task = get_task("arc_easy@5")
    assert (task.name, task.stem, task.shots) == ("arc_easy@5", "arc_easy", 5)
    assert task.title == "arc_easy@5 (acc)"
    for name, message in {
        "arc_easy@0": "asked without examples",
        "arc_easy@5@2": "one number",
        "demo_text@5": "plain text",
        "arc_esay@5": "unknown task 'arc_esay'",
    }.items():
        with pytest.raises(PruneError, match=message):
            get_task(name)
