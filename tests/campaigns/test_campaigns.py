"""Some of each campaign; `python -m tests.campaigns` does as many as docs/reliability.md tells."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.campaigns.state import difference, output, state


@pytest.mark.slow
@pytest.mark.parametrize("campaign", ["kills", "ends", "pairs", "disks"])
def test_nothing_is_wrong(campaign: str) -> None:
    if campaign == "disks" and os.geteuid() != 0:
        pytest.skip("only root may mount a small file system")
    count = "6" if campaign == "disks" else "2"
    command = [sys.executable, "-m", "tests.campaigns", campaign, "--count", count, "--no-write"]
    done = subprocess.run(
        command, cwd=Path(__file__).parents[2], capture_output=True, text=True, timeout=900
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "'wrong'" not in done.stdout


def test_what_differs_is_named(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out.run").mkdir()
    (tmp_path / "out" / "a").write_text("1")
    (tmp_path / "out" / "recovery.json").write_text('{"seconds": 1, "cells": [{"seconds": 2}]}')
    (tmp_path / "out.run" / "log").write_text("1")
    whole = state(tmp_path)
    (tmp_path / "out" / "recovery.json").write_text('{"seconds": 3, "cells": [{"seconds": 4}]}')
    (tmp_path / "out.run" / "log").write_text("2")
    assert difference(state(tmp_path), whole) == ""
    (tmp_path / "out" / "a").write_text("2")
    assert difference(state(tmp_path), whole) == "out/a is other"
    (tmp_path / "out" / "a").unlink()
    assert difference(state(tmp_path), whole) == "out/a is missing"
    (tmp_path / "out" / "a").write_text("1")
    (tmp_path / ".out.x.partial").mkdir()
    (tmp_path / ".out.x.partial" / "b").touch()
    assert difference(state(tmp_path), whole) == ".out.x.partial/b is left"
    assert output(state(tmp_path)).keys() == {"out/a", "out/recovery.json"}
