"""The scripts for machines with a GPU, on a CPU: every step runs, and one that fails is told."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from benchmarks.gpu import steps
from benchmarks.gpu.command import command
from benchmarks.gpu.kernels import STEPS, main
from benchmarks.gpu.serving import STEPS as SERVING
from tests.benchmarks import gpu_steps

ROOT = Path(__file__).parents[2]


def line_of(output: str) -> Any:
    return json.loads(output.splitlines()[-1])


def test_the_kernels_are_right_on_a_cpu_without_vllm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "vllm", None)
    result = CliRunner().invoke(main, ["--device", "cpu"])
    line = line_of(result.stdout)
    assert result.exit_code == 0, line
    assert (line["value"], line["unit"]) == (5, "steps passed of 5")
    found = line["detail"]["steps"]
    assert list(found) == list(STEPS)
    assert all(step["passed"] and step["numbers"] for step in found.values())
    assert len(found["A5-same-as-cpu"]["numbers"]["losses"]) == 3


def test_a_step_that_fails_keeps_no_other_from_running(monkeypatch: pytest.MonkeyPatch) -> None:
    """In processes of their own: whatever becomes of one."""
    monkeypatch.chdir(ROOT)
    chosen = [word for name in ("wrong", "raises", "dies", "right") for word in ("--step", name)]
    result = CliRunner().invoke(gpu_steps.main, ["--device", "cpu", *chosen])
    line = line_of(result.stdout)
    assert (result.exit_code, line["value"], line["unit"]) == (1, 1, "steps passed of 4")
    found = line["detail"]["steps"]
    assert found["right"]["numbers"] == {"answer": 42}
    assert found["right"]["left_out"] == ["graphs"]
    assert found["wrong"]["wrong"] == ["one and one are not three"]
    assert found["wrong"]["numbers"] == {"sum": 2}
    assert "illegal memory access" in found["raises"]["wrong"][0]
    assert found["raises"]["numbers"] == {"before": 1}
    assert "ended with -11" in found["dies"]["wrong"][0]


def test_a_step_that_hangs_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    found = steps.run_apart(gpu_steps.MODULE, "hangs", "cpu", tiny=True, seconds=0.5)
    assert not found["passed"]
    assert "took more than" in found["wrong"][0]


def test_no_step_begins_after_ten_minutes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(steps, "LIMIT", 0.0)
    found = steps.run_all(
        gpu_steps.MODULE, gpu_steps.STEPS, "cpu", tiny=True, apart=False, tell=print
    )
    assert all("not begun" in step["wrong"][0] for step in found.values())


def test_steps_can_be_chosen_and_stay_in_this_process() -> None:
    some = command("some", gpu_steps.MODULE, gpu_steps.STEPS, "Some.", apart=False)
    result = CliRunner().invoke(some, ["--device", "cpu", "--step", "right"])
    line = line_of(result.stdout)
    assert (result.exit_code, line["unit"]) == (0, "steps passed of 1")


@pytest.mark.slow
@pytest.mark.vllm
@pytest.mark.parametrize("step", list(SERVING))
def test_serving_is_right_on_a_cpu(step: str) -> None:
    command = [sys.executable, "-m", "benchmarks.gpu.serving", "--device", "cpu", "--step", step]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, cwd=ROOT)
    line = line_of(done.stdout)
    assert done.returncode == 0, line
    assert line["unit"] == "steps passed of 1"
