"""Whole or absent, and only in place of what is ours: leftovers, a full disk and kill -9."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from offline.build.build import build
from offline.runs.output import WORK_MARKER, check_output, clear_stale, staged
from offline.runs.owned import MANIFEST
from tests.runs.test_owner import another_at
from tests.sample_maps import uniform_map
from vllm_moe_prune.checkpoint import Checkpoint
from vllm_moe_prune.errors import PruneError

UNIFORM = [(0, 1, 2, 3)] * 4


def write(out: Path, name: str, *, force: bool = False) -> None:
    """Make an output of one file."""
    with staged(out, force=force) as partial:
        (partial / name).write_text(name)


def tree(folder: Path) -> list[str]:
    return sorted(file.relative_to(folder).as_posix() for file in folder.rglob("*"))


def test_an_existing_output_is_refused_and_left_as_it_is(base: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("mine")
    with pytest.raises(PruneError) as caught:
        build(Checkpoint.open(base), uniform_map(base, UNIFORM), tmp_path / "out")
    assert caught.value.message == f"{tmp_path / 'out'} already exists"
    assert caught.value.hint == "choose another --out or add --force"
    assert [file.name for file in tmp_path.rglob("*")] == ["out", "mine"]


def test_with_force_the_old_output_is_replaced_as_a_whole(base: Path, tmp_path: Path) -> None:
    write(tmp_path / "out", "ours")
    build(Checkpoint.open(base), uniform_map(base, UNIFORM), tmp_path / "out", force=True)
    assert not (tmp_path / "out" / "ours").exists()
    assert Checkpoint.open(tmp_path / "out").expert_counts() == dict.fromkeys(range(4), 4)
    assert [file.name for file in tmp_path.iterdir()] == ["out"]


def test_with_force_the_old_output_survives_a_failure(tmp_path: Path) -> None:
    write(tmp_path / "out", "ours")
    with pytest.raises(RuntimeError), staged(tmp_path / "out", force=True) as partial:
        (partial / "new").write_text("new")
        raise RuntimeError
    assert tree(tmp_path) == ["out", f"out/{MANIFEST}", "out/ours"]


def test_a_users_folders_with_names_like_ours_are_not_touched(base: Path, tmp_path: Path) -> None:
    users = ("out.partial", "out.replaced", ".out.abcdefgh.partial", ".out.partial")
    for name in users:
        (tmp_path / name / "new").mkdir(parents=True)
        (tmp_path / name / "new" / "mine").write_text("mine")
    before = tree(tmp_path)
    write(tmp_path / "out", "ours")
    write(tmp_path / "out", "ours", force=True)
    assert tree(tmp_path) == sorted([*before, "out", f"out/{MANIFEST}", "out/ours"])


@pytest.mark.parametrize("told", [{}, {"written_by": "vllm-moe-prune", "work_for": "other"}])
def test_a_marker_of_another_output_or_program_protects(
    told: dict[str, str], tmp_path: Path
) -> None:
    work = tmp_path / ".out.abcdefgh.partial"
    work.mkdir()
    (work / WORK_MARKER).write_text(json.dumps(told))
    write(tmp_path / "out", "ours")
    assert work.is_dir()


def test_what_a_killed_run_left_is_cleaned_and_what_works_is_not(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with staged(out) as partial:
        left = partial.parent
        marker = (left / WORK_MARKER).read_text()
        check_output(out, force=False)  # another command looks while this one works
        assert partial.is_dir()
        (partial / "one").write_text("one")
    work = tmp_path / ".out.abcdefgh.partial"
    (work / "new").mkdir(parents=True)
    (work / "new" / "stale.safetensors").write_bytes(b"stale")
    (work / WORK_MARKER).write_text(marker)
    write(out, "ours", force=True)
    assert tree(tmp_path) == ["out", f"out/{MANIFEST}", "out/ours"]


@pytest.mark.parametrize("name", [".out.abcd_123.partial", ".out.run.abcd_123.partial"])
def test_what_was_killed_before_it_was_marked_is_cleaned_unless_somebody_works_there(
    name: str, tmp_path: Path
) -> None:
    out, work = tmp_path / "out", tmp_path / name
    place = out if "run" not in name else tmp_path / "out.run"
    work.mkdir()
    (work / f"{WORK_MARKER}.tmp").touch()  # it has no name yet, and nothing in it
    clear_stale(tmp_path / "another")
    assert work.is_dir()
    with another_at(out):
        clear_stale(place)
        assert work.is_dir()
    clear_stale(place)
    assert tree(tmp_path) == []
    work.mkdir()
    (work / "a user's").touch()
    clear_stale(place)
    assert tree(tmp_path) == [name, f"{name}/a user's"]


_KILLED_BETWEEN = """
import os, signal, sys
from pathlib import Path
from offline.runs import output as staging

def killed(new, out, work):
    out.rename(work / "old")
    os.kill(os.getpid(), signal.SIGKILL)

staging.put = killed
with staging.staged(Path(sys.argv[1]), force=True) as folder:
    (folder / "new").write_text("new")
"""


@pytest.mark.parametrize("force", [True, False])
def test_kill_9_between_old_and_new_loses_neither(force: bool, tmp_path: Path) -> None:
    out = tmp_path / "out"
    write(out, "ours")
    command = [sys.executable, "-c", _KILLED_BETWEEN, str(out)]
    assert subprocess.run(command, check=False).returncode == -signal.SIGKILL
    assert not out.exists()
    if force:
        write(out, "newer", force=True)
        assert tree(tmp_path) == ["out", f"out/{MANIFEST}", "out/newer"]
    else:
        with pytest.raises(PruneError, match="already exists"):
            check_output(out, force=False)
        assert tree(tmp_path) == ["out", f"out/{MANIFEST}", "out/ours"]


def test_what_comes_into_the_place_meanwhile_stays(tmp_path: Path) -> None:
    for force in (False, True):
        out = tmp_path / f"out-{force}"
        with pytest.raises(PruneError), staged(out, force=force) as partial:
            (partial / "new").write_text("new")
            out.mkdir()
            (out / "mine").write_text("mine")
        assert tree(out) == ["mine"]


def test_the_folder_has_the_mode_of_any_other(tmp_path: Path) -> None:
    write(tmp_path / "out", "ours")
    (tmp_path / "other").mkdir()
    assert (tmp_path / "out").stat().st_mode == (tmp_path / "other").stat().st_mode


def test_a_name_may_be_as_long_as_the_file_system_allows(tmp_path: Path) -> None:
    out = tmp_path / ("\N{LATIN SMALL LETTER A WITH DIAERESIS}" * 127)
    write(out, "ours")
    write(out, "newer", force=True)
    assert tree(tmp_path) == [out.name, f"{out.name}/{MANIFEST}", f"{out.name}/newer"]
    with pytest.raises(PruneError, match="is too long"):
        check_output(tmp_path / ("a" * 256), force=False)


def test_a_parent_that_is_not_there_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(PruneError) as caught, staged(tmp_path / "absent" / "out"):
        pass
    assert caught.value.message == f"{tmp_path / 'absent'} is not a folder"


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 256 KiB, less than half of what a build needs."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(folder)]
    mounted = subprocess.run(command, capture_output=True, text=True, check=False)
    if mounted.returncode != 0:
        pytest.skip(f"may not mount a tmpfs: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


FULL = "no space left on the disk of {}; nothing was written"


def test_a_full_disk_is_one_line_and_leaves_nothing(base: Path, tiny_disk: Path) -> None:
    with pytest.raises(PruneError) as caught:
        build(Checkpoint.open(base), uniform_map(base, UNIFORM), tiny_disk / "out")
    assert caught.value.message == FULL.format(tiny_disk)
    assert list(tiny_disk.iterdir()) == []


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_without_a_mount_a_full_disk_is_the_same_line(
    code: int, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> int:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "copy_file_range", full)
    with pytest.raises(PruneError) as caught:
        build(Checkpoint.open(base), uniform_map(base, UNIFORM), tmp_path / "out")
    assert caught.value.message == FULL.format(tmp_path)
    assert list(tmp_path.iterdir()) == []


_SLOW_BUILD = """
import sys, time
from pathlib import Path
from offline.build.build import build
from vllm_moe_prune.checkpoint import Checkpoint
from vllm_moe_prune.routing_map import RoutingMap

def slowly(_):
    print("writing", flush=True)
    time.sleep(600)

base, map_, out = map(Path, sys.argv[1:])
build(Checkpoint.open(base), RoutingMap.load(map_), out, progress=slowly)
"""


def test_kill_9_during_a_build_leaves_no_output_and_the_next_run_succeeds(
    base: Path, tmp_path: Path
) -> None:
    routing_map = uniform_map(base, UNIFORM)
    routing_map.save(tmp_path / "map")
    out = tmp_path / "out"
    command = [sys.executable, "-c", _SLOW_BUILD, str(base), str(tmp_path / "map"), str(out)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "writing\n"
        assert len(list(tmp_path.glob(".out.*.partial"))) == 1
        child.send_signal(signal.SIGKILL)
    assert child.returncode == -signal.SIGKILL
    assert not out.exists()
    began = time.time()
    build(Checkpoint.open(base), routing_map, out)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["map", "out"]
    assert (out / "config.json").stat().st_mtime >= began - 2
    assert Checkpoint.open(out).expert_counts() == dict.fromkeys(range(4), 4)


def test_the_folder_that_a_command_runs_in_is_not_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    with staged(out) as new:
        (new / "ours").write_text("ours")
    monkeypatch.chdir(out)
    for name in (out, Path("../out")):
        with pytest.raises(PruneError, match="is the folder that this runs in"):
            check_output(name, force=True)
    assert (out / "ours").read_text() == "ours"
