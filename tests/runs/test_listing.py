"""`vmprune runs`: what lies there, how large it is, and what of it is over."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from offline.runs.output import staged
from offline.runs.owned import MANIFEST
from offline.runs.owner import lock_file, owned
from offline.runs.resume import run_folder
from tests.command import invoke
from vllm_moe_prune.errors import PruneError


def make_run(out: Path, *, ends: bool, keep: int = 4) -> Path:
    """Make a run that keeps 1000 bytes, with its output or without."""
    with owned(out):
        folder = run_folder(out, {"recipe": {"keep": keep}}, force=False)
        (folder / "evaluations.jsonl").write_bytes(b"x" * 1000)
        if ends:
            with staged(out) as partial:
                (partial / "scores.json").write_text("{}")
    return folder


def listed(folder: Path, *more: str) -> dict[str, str]:
    found = json.loads(invoke("runs", *more, "--in", folder, "--json").output)
    assert all(one["bytes"] >= 1000 for one in found)
    return {Path(one["folder"]).name: one["state"] for one in found}


def test_runs_are_told_by_whether_their_output_is_theirs(tmp_path: Path) -> None:
    make_run(tmp_path / "done", ends=True)
    make_run(tmp_path / "killed", ends=False)
    make_run(tmp_path / "again", ends=True)
    (tmp_path / "again.run" / "settings.json").write_text('{"recipe": "of another run"}')
    make_run(tmp_path / "old", ends=True)
    told = json.loads((tmp_path / "old" / MANIFEST).read_text())
    del told["run"]
    (tmp_path / "old" / MANIFEST).write_text(json.dumps(told))
    (tmp_path / "mine.run").mkdir()
    states = {"done.run": "finished", "again.run": "unfinished", "killed.run": "unfinished"}
    assert listed(tmp_path) == {**states, "old.run": "unknown"}
    text = invoke("runs", "--in", tmp_path).output
    assert f"{tmp_path / 'done.run'}  0.00 MiB  finished\n" in text
    assert text.endswith("4 runs, 0.00 MiB\n")
    assert listed(tmp_path, "clean") == {"done.run": "finished"}
    left = {"again", "again.run", "done", "killed.run", "mine.run", "old", "old.run"}
    assert {file.name for file in tmp_path.iterdir()} == left


def test_a_run_at_work_or_with_a_users_file_stays(tmp_path: Path) -> None:
    make_run(tmp_path / "busy", ends=True)
    make_run(tmp_path / "mine", ends=True)
    (tmp_path / "mine.run" / "notes.txt").write_text("mine")
    with owned(tmp_path / "busy"):
        assert listed(tmp_path) == {"busy.run": "at work", "mine.run": "finished"}
        assert f"at work: process {os.getpid()} on " in invoke("runs", "--in", tmp_path).output
        assert listed(tmp_path, "clean") == {}
    assert (tmp_path / "mine.run" / "notes.txt").read_text() == "mine"
    assert listed(tmp_path, "clean") == {"busy.run": "finished"}


def test_a_lock_and_a_working_folder_of_the_killed_go(tmp_path: Path) -> None:
    out = tmp_path / "out"
    if (pid := os.fork()) == 0:
        with staged(out):
            os._exit(9)  # as a kill does: nothing is tidied up
    os.waitpid(pid, 0)
    assert len(list(tmp_path.iterdir())) == 2
    assert lock_file(out).exists()
    assert listed(tmp_path, "clean") == {}
    assert list(tmp_path.iterdir()) == []


def test_a_place_that_is_no_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PruneError, match="is not a folder"):
        invoke("runs", "--in", tmp_path / "absent")
