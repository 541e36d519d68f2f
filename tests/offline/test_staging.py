"""Whole or absent: existing output, leftovers, a full disk and kill -9."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from offline.build import build
from offline.staging import staged
from tests.maps import uniform_map
from vllm_moe_prune.checkpoint import Checkpoint
from vllm_moe_prune.errors import PruneError

UNIFORM = [(0, 1, 2, 3)] * 4


def test_an_existing_output_is_refused_and_left_as_it_is(base: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("mine")
    with pytest.raises(PruneError) as caught:
        build(Checkpoint.open(base), uniform_map(base, UNIFORM), tmp_path / "out")
    assert caught.value.message == f"{tmp_path / 'out'} already exists"
    assert caught.value.hint == "choose another --out or add --force"
    assert [file.name for file in tmp_path.rglob("*")] == ["out", "mine"]


def test_with_force_the_old_output_is_replaced_as_a_whole(base: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("mine")
    build(Checkpoint.open(base), uniform_map(base, UNIFORM), tmp_path / "out", force=True)
    assert not (tmp_path / "out" / "mine").exists()
    assert Checkpoint.open(tmp_path / "out").expert_counts() == dict.fromkeys(range(4), 4)
    assert [file.name for file in tmp_path.iterdir()] == ["out"]


def test_with_force_the_old_output_survives_a_failure(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("mine")
    with pytest.raises(RuntimeError), staged(tmp_path / "out", force=True) as partial:
        (partial / "new").write_text("new")
        raise RuntimeError
    assert [file.name for file in tmp_path.rglob("*")] == ["out", "mine"]


def test_what_a_killed_run_left_is_cleaned(base: Path, tmp_path: Path) -> None:
    (tmp_path / "out.partial").mkdir()
    (tmp_path / "out.partial" / "stale.safetensors").write_bytes(b"stale")
    build(Checkpoint.open(base), uniform_map(base, UNIFORM), tmp_path / "out")
    assert [file.name for file in tmp_path.iterdir()] == ["out"]
    assert not (tmp_path / "out" / "stale.safetensors").exists()


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
from offline.build import build
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
        assert (tmp_path / "out.partial").is_dir()
        child.send_signal(signal.SIGKILL)
    assert child.returncode == -signal.SIGKILL
    assert not out.exists()
    began = time.time()
    build(Checkpoint.open(base), routing_map, out)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["map", "out"]
    assert (out / "config.json").stat().st_mtime >= began - 2
    assert Checkpoint.open(out).expert_counts() == dict.fromkeys(range(4), 4)
