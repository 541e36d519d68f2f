"""Where an output may be: with room for it, and not inside what is read."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from offline.cli.main import cli
from offline.runs.output import check_output, check_room
from tests.sample_maps import uniform_map
from vllm_moe_prune.errors import PruneError


class Disk:
    """A disk with so many bytes free of so many."""

    def __init__(self, free: int, total: int = 1 << 40) -> None:
        self.free, self.total = free, total


@pytest.mark.parametrize(("free", "total", "fits"), [(9, 99, False), (10, 99, True), (0, 0, True)])
def test_a_disk_without_room_is_told_of_at_the_start(
    free: int, total: int, fits: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Disk(free, total))
    if fits:
        check_room(tmp_path / "out", 10)
    else:
        with pytest.raises(PruneError, match=r"out will have 0\.00 MiB and the disk of "):
            check_room(tmp_path / "out", 10)


@pytest.mark.parametrize("verb", ["build", "compress"])
def test_builds_and_searches_ask_for_what_they_will_write(
    verb: str, base: Path, task_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uniform_map(base, [(0, 2, 5, 7)] * 4).save(tmp_path / "map")
    words: list[Any] = [verb, "--model", base, "--out", tmp_path / "out"]
    words += ["--map", tmp_path / "map"] if verb == "build" else ["--keep", 4, "--task", task_file]
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Disk(1000))
    with pytest.raises(PruneError, match=r"out will have 1\.4[45] MiB and the disk"):
        CliRunner().invoke(cli, [str(word) for word in words], catch_exceptions=False)


@pytest.mark.parametrize("place", ["model/out", "model/a/out", "link/out"])
def test_an_output_inside_what_is_read_is_refused(place: str, tmp_path: Path) -> None:
    (tmp_path / "model" / "a").mkdir(parents=True)
    (tmp_path / "model" / "config.json").write_text("{}")
    (tmp_path / "link").symlink_to(tmp_path / "model")
    with pytest.raises(PruneError, match=r"lies in .*model, which is read"):
        check_output(tmp_path / place, force=True, inputs=(tmp_path / "model",))
    check_output(tmp_path / "out", force=True, inputs=(tmp_path / "model", tmp_path))
    check_output(tmp_path / place, force=True, inputs=(tmp_path,))  # a folder of many things
