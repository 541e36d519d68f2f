"""lm-eval's tasks by name with the data sets that lie on the hub: the real clients, a local hub."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import datasets
import pytest

from tests.command import invoke, one_error, run
from tests.hub.server import Hub
from tests.tasks.conftest import forget
from tests.tasks.lm_eval_shapes import gsm8k
from tests.tiny import make_tiny_mixtral

_CARD = """\
---
configs:
- config_name: main
  data_files:
  - {split: train, path: main/train-*}
  - {split: test, path: main/test-*}
---
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_mixtral(tmp_path_factory.mktemp("base") / "tiny", experts=4)


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder as openai/gsm8k is one."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "datasets")
    forget()
    folder = tmp_path / "data"
    (folder / "main").mkdir(parents=True)
    (folder / "README.md").write_text(_CARD)
    for split, begin, end in (("train", 0, 40), ("test", 40, 50)):
        rows = datasets.Dataset.from_list([dict(gsm8k(n)) for n in range(begin, end)])
        rows.to_parquet(folder / "main" / f"{split}-00000-of-00001.parquet")
    yield folder
    forget()


def test_a_task_reads_its_data_set_from_the_hub(hub: Hub, data: Path, model: Path) -> None:
    hub.publish("openai/gsm8k", data, kind="dataset")
    words = ["eval", "--model", model, "--task", "gsm8k@1", "--device", "cpu", "--limit", "2"]
    done = invoke(*words, "--json")
    found = json.loads(done.stdout)
    assert [item["item"] for item in found["items"]] == ["test-0", "test-1"]
    assert set(found["metrics"]) == {"exact_match/strict-match", "exact_match/flexible-extract"}
    assert any(hub.asked("main/test-00000-of-00001.parquet"))


@pytest.mark.parametrize(
    ("publish", "said"),
    [
        (False, "task gsm8k_platinum: its data set madrylab/gsm8k-platinum (main) is not on the "),
        (True, "task gsm8k_platinum: its data set madrylab/gsm8k-platinum (main) is gated"),
    ],
)
def test_a_data_set_that_cannot_be_had_is_one_line(
    hub: Hub,
    data: Path,
    model: Path,
    publish: bool,
    said: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    if publish:
        hub.publish("madrylab/gsm8k-platinum", data, kind="dataset", gated=True)
    words = ("eval", "--model", model, "--task", "gsm8k_platinum", "--device", "cpu", "--quiet")
    error = one_error(*run(*words, capsys=capsys))
    assert error.startswith(said)


def test_a_hub_that_does_not_answer_is_one_line(
    hub: Hub,
    data: Path,
    model: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    hub.is_down = True
    waited: list[float] = []  # by the client between its tries, 23 seconds in all
    clock = SimpleNamespace(sleep=waited.append, time=time.time, monotonic=time.monotonic)
    monkeypatch.setattr("huggingface_hub.utils._http.time", clock)
    words = ("eval", "--model", model, "--task", "gsm8k_cot_zeroshot", "--device", "cpu", "--quiet")
    error = one_error(*run(*words, capsys=capsys))
    assert error.startswith("task gsm8k_cot_zeroshot: its data set openai/gsm8k (main) cannot be ")
    assert len(waited) > 1
