"""What may go wrong between a task's name and its data ends in one line that names both."""

from __future__ import annotations

from pathlib import Path

import datasets
import pytest

from offline.tasks.catalog import Library, get_task
from offline.tasks.loading import load
from offline.tasks.splits import load_items
from offline.tasks.task import Task
from vllm_moe_prune.errors import PruneError

_TASK = """\
task: {name}
output_type: generate_until
dataset_path: {path}
test_split: test
doc_to_text: "{{{{q}}}}"
doc_to_target: a
process_results: null
metric_list: [{{metric: exact_match, aggregation: mean, higher_is_better: true}}]
filter_list: [{{name: x, filter: []}}, {{name: y, filter: []}}]
"""


def task_over(folder: Path, path: str, name: str = "own") -> Task:
    (folder / "own.yaml").write_text(_TASK.format(name=name, path=path))
    return get_task(name, Library((folder,)))


def said(task: Task) -> str:
    assert task.lm_eval is not None
    with pytest.raises(PruneError) as error:
        load(task.lm_eval)
    assert "\n" not in error.value.message
    return error.value.message


def failing(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def load_dataset(**_: object) -> None:
        raise error

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (
            datasets.exceptions.DatasetNotFoundError("Dataset 'me/none' doesn't exist on the Hub"),
            "task own: its data set me/data is not on the hub",
        ),
        (
            datasets.exceptions.DatasetNotFoundError("Dataset 'me/data' is a gated dataset"),
            "task own: its data set me/data is gated",
        ),
        (
            RuntimeError("Dataset scripts are no longer supported, but found data.py"),
            "task own: its data set me/data runs code of its own (trust_remote_code), which is "
            "refused",
        ),
        (
            ConnectionError("Couldn't reach 'me/data' on the Hub (OfflineModeIsEnabled)"),
            "task own: its data set me/data cannot be reached: Couldn't reach 'me/data' on the "
            "Hub (OfflineModeIsEnabled)",
        ),
        (
            ValueError("several\nlines of it"),
            "task own cannot be loaded: ValueError: several lines of it",
        ),
    ],
)
def test_data_that_cannot_be_had(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, message: str
) -> None:
    task = task_over(tmp_path, "me/data")
    failing(monkeypatch, error)
    assert said(task) == message


def test_an_absent_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    task = task_over(tmp_path, "me/data")
    failing(monkeypatch, ModuleNotFoundError("No module named 'unitxt'", name="unitxt"))
    assert said(task) == "task own needs the package unitxt"


def test_a_split_that_the_data_have_not_is_named(tmp_path: Path) -> None:
    (tmp_path / "data.jsonl").write_text('{"q": "why?", "a": "so"}\n')
    task = task_over(tmp_path, f"json\ndataset_kwargs: {{data_files: {tmp_path}/data.jsonl}}")
    assert "task own cannot be loaded: KeyError: 'test'" in said(task)


def test_data_of_another_form_than_the_task_are_named(tmp_path: Path) -> None:
    rows = ['{"q": "why?", "a": "so"}\n'] + ['{"q": null, "a": "so"}\n'] * 3
    (tmp_path / "data.jsonl").write_text("".join(rows))
    files = f"json\ndataset_kwargs: {{data_files: {{test: {tmp_path}/data.jsonl}}}}"
    task = task_over(tmp_path, files)
    file = tmp_path / "own.yaml"
    file.write_text(file.read_text().replace('"{{q}}"', '"{{q.strip()}}"'))
    with pytest.raises(PruneError, match="task own: its data cannot be read: UndefinedError"):
        load_items(task, "search")


@pytest.mark.parametrize("place", ["absent", "file"])
def test_an_include_path_must_be_a_folder(tmp_path: Path, place: str) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(PruneError, match=r"--include-path .*: no such folder"):
        get_task("own", Library((tmp_path / place,)))
