"""A killed finetune goes on with the same call and ends with the same bytes."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from offline.finetune.where import Where
from tests.finetune.samples import bytes_of, tiny, tune
from vllm_moe_prune.tuning import Trainable

STEPS = 9


class Stop:
    """A reporter that ends the run after some steps."""

    def __init__(self, after: int) -> None:
        self.after, self.done = after, 0
        self.began: int | None = None

    def stage(self, title: str, total: int) -> None:
        assert (title, total) == ("training", STEPS)

    def step(self, amount: int = 1, note: str = "") -> None:
        if self.began is None:
            self.began = amount if "saved" in note else 0
        self.done += amount
        if self.done == self.after:
            raise KeyboardInterrupt


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny(tmp_path_factory.mktemp("tiny") / "m", tie=True)


@pytest.mark.parametrize("trainable", ["all", "lora"])
def test_an_interrupted_call_goes_on_from_its_last_state(
    trainable: Trainable, model: Path, tmp_path: Path
) -> None:
    whole = tune(model, tmp_path / "whole", trainable=trainable, epochs=3)
    where = Where(save_every=2)
    for after, begins in ((5, 0), (7, 4)):
        stop = Stop(after)
        with pytest.raises(KeyboardInterrupt):
            tune(model, tmp_path / "out", None, where, trainable=trainable, epochs=3, reporter=stop)
        assert stop.began == begins
        assert not (tmp_path / "out").exists()
    found = tune(model, tmp_path / "out", None, where, trainable=trainable, epochs=3)
    assert found.losses == whole.losses
    assert found.tuning == whole.tuning
    assert bytes_of(tmp_path / "out") == bytes_of(tmp_path / "whole")
    assert {path.name for path in tmp_path.iterdir()} == {"out", "whole"}


def test_states_of_another_finetune_are_not_taken(model: Path, tmp_path: Path) -> None:
    where = Where(save_every=2)
    with pytest.raises(KeyboardInterrupt):
        tune(model, tmp_path / "out", None, where, epochs=3, reporter=Stop(5))
    again = Stop(STEPS + 1)
    tune(model, tmp_path / "out", None, where, epochs=3, seed=99, reporter=again)
    assert again.began == 0


_RUN = """
import os, signal, sys
from pathlib import Path
from offline.finetune.finetune import Where
from tests.finetune.samples import tune

class Kill:
    done = 0
    def stage(self, title, total): pass
    def step(self, amount=1, note=""):
        self.done += amount
        if self.done == int(sys.argv[3]):
            os.kill(os.getpid(), signal.SIGKILL)

tune(Path(sys.argv[1]), Path(sys.argv[2]), None, Where(save_every=2), epochs=3, reporter=Kill())
"""


@pytest.mark.slow
def test_kill_9_and_the_same_call_end_with_the_same_bytes(model: Path, tmp_path: Path) -> None:
    def run(after: int) -> int:
        given = [sys.executable, "-c", _RUN, str(model), str(tmp_path / "out"), str(after)]
        return subprocess.run(given, check=False).returncode

    assert run(5) == -signal.SIGKILL
    (left,) = (path.name for path in tmp_path.iterdir() if path.name != "out.finetune.run")
    assert left.startswith(".out.") and left.endswith(".partial")
    assert run(99) == 0
    tune(model, tmp_path / "whole", epochs=3)
    assert bytes_of(tmp_path / "out") == bytes_of(tmp_path / "whole")
    assert {path.name for path in tmp_path.iterdir()} == {"out", "whole"}
