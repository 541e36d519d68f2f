"""Several processes, and what a user is told when one fails."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from offline.finetune.job import Job, JobResult
from offline.finetune.launch import Launch, _failure
from offline.finetune.where import Where
from offline.finetune.worker import EXAMPLES, JOB, PROGRESS, TRAINED, main
from tests.finetune.samples import SETTINGS, assert_alike, ragged, text, tiny, tune, weights_of
from vllm_moe_prune.errors import PruneError

CONFIG = "compute_environment: LOCAL_MACHINE\ndistributed_type: {}\nnum_processes: {}\n"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny(tmp_path_factory.mktemp("tiny") / "m")


class Heard:
    """A reporter that remembers."""

    def __init__(self) -> None:
        self.stages: list[tuple[str, int]] = []
        self.notes: list[str] = []

    def stage(self, title: str, total: int) -> None:
        self.stages.append((title, total))

    def step(self, amount: int = 1, note: str = "") -> None:
        self.notes += [note] * amount


def test_how_processes_are_started(tmp_path: Path) -> None:
    assert Launch.of(Where()).in_this_process
    assert not Launch.of(Where(processes=2)).in_this_process
    file = tmp_path / "fsdp.yaml"
    file.write_text(CONFIG.format("FSDP", 8))
    assert Launch.of(Where(accelerate_config=file)) == Launch(8, True, file)
    assert Launch.of(Where(accelerate_config=file, processes=4)) == Launch(4, True, file)
    file.write_text(CONFIG.format("MULTI_GPU", 1))
    found = Launch.of(Where(accelerate_config=file))
    assert not found.fsdp
    assert not found.in_this_process


def test_a_configuration_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PruneError, match="no configuration file at"):
        Launch.of(Where(accelerate_config=tmp_path / "absent"))
    (tmp_path / "x").write_text("a: 1")
    with pytest.raises(PruneError, match="no num_processes"):
        Launch.of(Where(accelerate_config=tmp_path / "x"))


def test_a_batch_that_processes_cannot_share_is_refused_before_they_start(
    model: Path, tmp_path: Path
) -> None:
    with pytest.raises(PruneError, match="batch of 4 sequences cannot be shared by 3 processes"):
        tune(model, tmp_path / "out", where=Where(processes=3))


def test_the_first_reason_is_the_one_that_is_told(tmp_path: Path) -> None:
    (tmp_path / "stderr").write_text("Traceback\n  line\nOSError: no room\n-----\n")
    assert _failure(tmp_path, 1).message.endswith("OSError: no room")
    (tmp_path / "stderr").write_text("exitcode: -9\ntraceback: Signal 9 (SIGKILL) received\n")
    assert "memory" in str(_failure(tmp_path, 1))
    (tmp_path / "error-1.json").write_text(json.dumps({"message": "it broke", "hint": "mend it"}))
    found = _failure(tmp_path, 1)
    assert (found.message, found.hint) == ("training failed: it broke", "mend it")


def job(model: Path, folder: Path, **settings: float) -> Path:
    folder.mkdir()
    (folder / "weights").mkdir()
    text().save(folder / EXAMPLES)
    made = Job(
        model=model,
        out=folder / "weights",
        settings=SETTINGS.model_copy(update=settings),
        seed=3,
        device="cpu",
        dtype="base",
    )
    (folder / JOB).write_text(made.model_dump_json())
    return folder


def test_a_worker_does_its_job_and_says_what_it_did(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = job(model, tmp_path / "job")
    assert main(folder) == 0
    here = tune(model, tmp_path / "here")
    there = JobResult.model_validate_json((folder / TRAINED).read_text())
    assert there.losses == here.losses
    assert load_file(folder / "weights" / "model.safetensors").keys() == weights_of(model).keys()
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith(PROGRESS)]
    assert json.loads(lines[0].removeprefix(PROGRESS)) == {"stage": "training", "total": 3}
    assert len(lines) == 4


def test_a_worker_that_fails_says_why(model: Path, tmp_path: Path) -> None:
    folder = job(model, tmp_path / "job", learning_rate=1e30)
    assert main(folder) == 1
    assert not (folder / TRAINED).exists()
    assert "--learning-rate" in str(_failure(folder, 1))


def test_a_worker_ends_with_the_process_that_waits_for_it() -> None:
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    code = f"from offline.finetune.worker import _die_with; _die_with({gone.pid})"
    assert subprocess.run([sys.executable, "-c", code], timeout=60, check=False).returncode == 1


@pytest.mark.slow
def test_two_processes_are_one_but_for_the_last_bits(
    model: Path, tmp_path: Path, users_folder: Path
) -> None:
    """11 sequences in batches of 4: the last batch has 3, so one process gets a filler."""
    heard, examples = Heard(), ragged(count=11)
    one = tune(model, tmp_path / "one", examples, epochs=2)
    two = tune(
        model,
        tmp_path / "two",
        examples,
        Where(processes=2),
        epochs=2,
        micro_batch=1,
        reporter=heard,
    )
    np.testing.assert_allclose(two.losses, one.losses, rtol=1e-5)
    assert two.tuning == one.tuning
    assert_alike(tmp_path / "one", tmp_path / "two")
    assert heard.stages == [("training", 6)]
    assert [note.split()[0] for note in heard.notes] == ["loss"] * 6


@pytest.mark.slow
def test_a_failing_worker_is_one_clear_error_and_leaves_nothing(
    model: Path, tmp_path: Path
) -> None:
    with pytest.raises(PruneError, match=r"training failed: the loss of step .*--learning-rate"):
        tune(model, tmp_path / "out", text(), Where(processes=2), learning_rate=1e30)
    assert list(tmp_path.iterdir()) == []
