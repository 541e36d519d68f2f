"""A recovery that is killed by a signal, in a process of its own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from click.testing import CliRunner

from offline.cli.main import cli
from offline.results.recovery import Recovery

_HALF = ".model-tuned.*.partial/new"


@pytest.mark.slow
def test_a_run_killed_while_it_trains_leaves_nothing_half_done(
    pruned: Path, tasks: dict[str, Path], tmp_path: Path
) -> None:
    out, whole = tmp_path / "out", tmp_path / "whole"
    words = ["recover", "--model", pruned, "--task", tasks["colours"], "--steps", "60",
             "--learning-rate", "0.003", "--test-items", "20", "--device", "cpu",
             "--dtype", "float32"]  # fmt: skip
    arguments = [str(word) for word in words]
    training = out.with_name("out.run")
    _killed_when_there_is(training, _HALF, [*arguments, "--out", str(out)])
    assert list(training.glob(_HALF)) and not out.exists()
    assert not (training / "model-tuned").exists()
    for folder in (out, whole):
        done = CliRunner().invoke(cli, [*arguments, "--out", str(folder)], catch_exceptions=False)
        assert done.exit_code == 0, done.output
    found, wanted = Recovery.load(out), Recovery.load(whole)
    assert [c.accuracy for c in found.cells] == [c.accuracy for c in wanted.cells]
    assert (out / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()
    assert not list(training.glob(_HALF))


def _killed_when_there_is(folder: Path, pattern: str, arguments: list[str]) -> None:
    command = [sys.executable, "-c", "from offline.cli.main import main; main()", *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment) as child:
        deadline = time.monotonic() + 240
        while not list(folder.glob(pattern)):
            assert child.poll() is None, child.stderr and child.stderr.read()
            assert time.monotonic() < deadline
            time.sleep(0.01)
        child.send_signal(signal.SIGKILL)
    assert child.returncode == -signal.SIGKILL
