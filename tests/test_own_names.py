"""A `serve.py` or an `offline.py` in the user's folder is not run by our commands and children.

The tests of servers, of training in several processes and of replicas run in such a folder, too.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from loadtest.compare import CompareResult
from serve.process import python_module
from tests.loadtest.fake_openai import Behaviour, fake_openai


@pytest.mark.parametrize("module", ["serve.server", "loadtest.results", "offline.finetune.job"])
def test_a_child_s_module_is_ours(module: str, users_folder: Path) -> None:
    plain = subprocess.run([sys.executable, "-m", module], capture_output=True, text=True)
    assert "imported the user's" in plain.stderr  # what a child would run without the safe path
    safe = subprocess.run(python_module(module), capture_output=True, text=True)
    assert (safe.returncode, safe.stderr) == (0, "")


@pytest.mark.parametrize(
    "safe",
    [pytest.param(True, id="-P"), pytest.param(False, id="without-P", marks=pytest.mark.slow)],
)
def test_the_load_test_and_its_locust_run_there(safe: bool, users_folder: Path) -> None:
    if not safe:  # nothing can be done about `python -m loadtest.compare` beside a loadtest.py
        (users_folder / "loadtest.py").unlink()
    with fake_openai(Behaviour()) as server:
        command = [sys.executable, *(["-P"] if safe else []), "-m", "loadtest.compare"]
        command += ["--base", server.url, "--candidate", server.url, "--users", "1"]
        command += ["--rounds", "1", "--requests", "1", "--natural-requests", "1", "--out", "out"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    result = CompareResult.model_validate_json((users_folder / "out/compare.json").read_text())
    assert result.errors == 0


def test_vllm_s_own_command_line_looks_there_last(users_folder: Path) -> None:
    """Also when a user starts it without -P, where only `serve` itself can be in its way."""
    (users_folder / "serve.py").unlink()
    code = (
        "import os, sys; from serve.launch import own_folder_last; sys.path[0] = %r; "
        "own_folder_last(); print(sys.path[-1], os.environ['PYTHONSAFEPATH']); "
        "import vllm_moe_prune"
    )
    command = [sys.executable, "-c", code % str(users_folder)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.stdout.split() == [str(users_folder), "1"], done.stderr
    assert done.returncode == 0, done.stderr
