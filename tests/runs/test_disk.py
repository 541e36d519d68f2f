"""A full disk is one line, also where a library says it in its own way, and nothing else is."""

from __future__ import annotations

import errno
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
from safetensors import SafetensorError

from offline.runs.disk import one_line_if_full
from vllm_moe_prune.errors import PruneError

FULL = [
    OSError(errno.ENOSPC, "No space left on device"),
    OSError(errno.EDQUOT, "Disk quota exceeded"),
    SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"),
]


@pytest.mark.parametrize("error", FULL, ids=["disk", "quota", "safetensors"])
def test_a_full_disk_is_one_line(error: Exception, tmp_path: Path) -> None:
    with pytest.raises(PruneError) as caught, one_line_if_full(tmp_path / "out", "free some"):
        raise error
    assert caught.value.message == f"no space left on the disk of {tmp_path}"
    assert caught.value.hint == "free some"


@pytest.mark.parametrize(("free", "full"), [(1000, True), (1 << 30, False)])
def test_what_torch_does_not_say_is_asked_of_the_disk(
    free: int, full: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=free))
    wanted: type[Exception] = PruneError if full else RuntimeError
    with pytest.raises(wanted), one_line_if_full(tmp_path / "out", ""):
        raise RuntimeError("[enforce fail at inline_container.cc:672] unexpected pos 64 vs 0")


@pytest.mark.parametrize("error", [OSError(errno.EIO, "I/O error"), KeyError("x"), MemoryError()])
def test_other_errors_are_theirs(
    error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=0))
    with pytest.raises(type(error)), one_line_if_full(tmp_path / "out", ""):
        raise error
