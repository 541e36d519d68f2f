"""`vmprune compress --preset paper` on EEP's tasks: a tiny model, data of the hub's shapes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from offline.compress.recipe.reading import recipe_of
from offline.results.compression import RunResult
from tests.command import invoke, one_error, run
from tests.tasks.paper_data import write_hub

BUDGETS = (
    "--evaluations", "5", "--initial", "2", "--prune-evaluations", "3", "--finalists", "2",
    "--search-items", "4", "--selection-items", "3", "--test-items", "5", "--compare", "none",
)  # fmt: skip


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Data sets as the hub names them; made once, as a process reads a task's data once."""
    folder = tmp_path_factory.mktemp("data")
    write_hub(folder, questions=20)
    return folder


@pytest.fixture
def out(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to write, with the data sets where one stands: datasets takes those first."""
    monkeypatch.setenv("VMPRUNE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "datasets")
    monkeypatch.chdir(data)
    return tmp_path / "out"


def _compressed(model: Path, task: str, out: Path) -> RunResult:
    settings = ("--model", model, "--method", "eep", "--preset", "paper", "--keep", "4")
    where = ("--device", "cpu", "--dtype", "float32", "--task", task, "--out", out)
    done = invoke("compress", *settings, *where, *BUDGETS)
    assert done.exit_code == 0, done.output
    return RunResult.load(out)


def test_boolq_is_searched_on_train_and_measured_on_validation(model: Path, out: Path) -> None:
    result = _compressed(model, "eep_boolq", out)
    assert [point.phase for point in result.search] == ["prune"] * 3 + ["merge"] * 2
    assert all(point.complete for point in result.search)  # the paper's search does not race
    decided = {(data.name, data.split, data.count) for data in result.provenance.data}
    assert decided == {
        ("eep_boolq", "search (train)", 4),
        ("eep_boolq", "selection (train)", 3),
    }
    assert result.provenance.settings["apply_chat_template"] is True
    assert {(q.data_split, *q.metrics) for q in result.quality if q.split == "test"} == {
        ("validation", "acc"),
    }
    assert {(q.variant, q.split, q.items) for q in result.quality} >= {
        ("base", "test", 5), ("eep", "test", 5), ("eep", "selection", 3), ("eep", "search", 4),
    }  # fmt: skip


@pytest.mark.parametrize(
    ("more", "chat"),
    [
        ({"task": "eep"}, True),
        ({"task": "eep_boolq:2, eep_mmlu"}, True),
        ({"task": "eep", "apply_chat_template": False}, False),
        ({"task": "eep,sciq"}, None),
        ({"task": "sciq"}, None),
        ({"task": "eep", "preset": "fast"}, None),
    ],
)
def test_the_papers_preset_puts_its_own_tasks_as_a_chat(
    more: dict[str, Any], chat: bool | None
) -> None:
    recipe = recipe_of({"model": Path("base"), "keep": 4, "preset": "paper"} | more)
    assert recipe.prompting.apply_chat_template is chat
    assert recipe.settings().get("apply_chat_template") is chat


def test_mmlu_is_searched_on_50_subjects_and_measured_on_7_more(model: Path, out: Path) -> None:
    result = _compressed(model, "eep_mmlu", out)
    assert result.tasks == ("eep_mmlu_iid",)
    measured = {(q.variant, q.task, q.split) for q in result.quality}
    assert {("base", "eep_mmlu_ood", "test"), ("eep", "eep_mmlu_ood", "test")} <= measured
    assert {split for _, task, split in measured if task == "eep_mmlu_ood"} == {"test"}
    assert {split for _, task, split in measured if task == "eep_mmlu_iid"} == {
        "search", "selection", "test",
    }  # fmt: skip
    assert {data.name for data in result.provenance.data} == {"eep_mmlu_iid"}


def test_all_tasks_are_measured_by_name(model: Path, out: Path) -> None:
    done = invoke(
        "eval", "--model", model, "--device", "cpu", "--dtype", "float32", "--json",
        "--task", "eep,eep_mmlu",
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    found = [json.loads(line) for line in done.stdout.splitlines()]
    items = {one["task"]: (one["source"], len(one["items"])) for one in found}
    assert len(items) == 12
    assert items["eep_drop"] == ("validation", 2)
    assert items["eep_mmlu_ood"] == ("test", 20)


def test_what_is_only_measured_cannot_be_searched(
    model: Path, out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said = run(
        "compress", "--model", model, "--keep", "4", "--task", "eep_mmlu_ood", "--out", out,
        capsys=capsys,
    )  # fmt: skip
    assert one_error(*said) == "task eep_mmlu_ood is only measured: no search sees it"
