"""One process at a time works at an output; a second is told who, and a killed one's is taken."""

from __future__ import annotations

import errno
import fcntl
import json
import logging
import multiprocessing
import os
import signal
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest

from offline.runs.output import staged
from offline.runs.owner import at_work, lock_file, owned
from vllm_moe_prune.errors import PruneError

FORK = multiprocessing.get_context("fork")


def names(folder: Path) -> list[str]:
    return sorted(file.name for file in folder.iterdir())


@contextmanager
def another_at(out: Path) -> Iterator[Any]:
    """Let another process work at an output while a block lasts; it is killed then."""
    began = FORK.Event()

    def work() -> None:
        with owned(out):
            began.set()
            time.sleep(60)

    process = FORK.Process(target=work)
    process.start()
    assert began.wait(60)
    try:
        yield process
    finally:
        process.kill()
        process.join(60)


def test_a_second_process_is_told_who_works_there(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with another_at(out) as other:
        with pytest.raises(PruneError) as caught, staged(out):
            pass
        assert f"process {other.pid} on {socket.gethostname()}, since 20" in caught.value.message
        assert caught.value.message.endswith(f", works at {out}")
        assert caught.value.hint == "wait until it is done, or choose another --out"
        assert at_work(out) is not None
        with staged(tmp_path / "another") as partial:
            (partial / "file").touch()
    with staged(out) as partial:
        (partial / "file").touch()
    assert names(tmp_path) == ["another", "out"]


def test_what_a_killed_process_held_is_taken_over_with_a_note(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    out = tmp_path / "out"
    with another_at(out) as other:
        os.kill(other.pid, signal.SIGKILL)
        other.join(60)
    assert names(tmp_path) == [lock_file(out).name]
    assert at_work(out) is None
    with caplog.at_level(logging.WARNING), owned(out):
        assert f"note: process {other.pid} on " in caplog.text
    assert names(tmp_path) == []


def test_a_place_within_what_is_worked_at_needs_no_lock_of_its_own(tmp_path: Path) -> None:
    with owned(tmp_path / "out"):
        for place in ("out", "out.run", "out.run/round-01/map"):
            with owned(tmp_path / place):
                assert names(tmp_path) == [lock_file(tmp_path / "out").name]
    assert names(tmp_path) == []


def test_a_process_that_looks_at_its_place_keeps_its_lock(tmp_path: Path) -> None:
    """What it looks at is its own lock file, too; closing that would drop the lock."""
    out = tmp_path / "out"

    def try_it() -> None:
        try:
            with owned(out):
                os._exit(0)
        except PruneError:
            os._exit(3)

    with staged(out), owned(out):
        assert at_work(out) is not None
        process = FORK.Process(target=try_it)
        process.start()
        process.join(60)
        assert process.exitcode == 3


def test_two_at_once_leave_one_whole_output(tmp_path: Path) -> None:
    out = tmp_path / "out"

    def write(word: str, start: Any) -> None:
        start.wait(60)
        try:
            with staged(out, force=True) as partial:
                for number in range(5):
                    (partial / f"shard-{number}").write_text(word)
        except PruneError:
            os._exit(3)

    for _ in range(20):
        start = FORK.Barrier(2)
        both = [FORK.Process(target=write, args=(word, start)) for word in ("a", "b")]
        for process in both:
            process.start()
        for process in both:
            process.join(60)
        assert {process.exitcode for process in both} <= {0, 3}
        assert any(process.exitcode == 0 for process in both)
        assert names(tmp_path) == ["out"]
        assert len({file.read_text() for file in out.glob("shard-*")}) == 1
        assert len(list(out.glob("shard-*"))) == 5


def test_an_output_that_is_being_replaced_is_somebodys(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    with staged(out) as partial:
        (partial / "file").touch()
    monkeypatch.setattr("offline.runs.output.first_foreign", lambda out: (out / "gone").stat())
    said = f"another process works at {out}"
    with pytest.raises(PruneError, match=said), staged(out, force=True):
        pass


def test_a_users_file_of_that_name_is_not_taken_for_a_lock(tmp_path: Path) -> None:
    lock_file(tmp_path / "out").write_text("mine")
    with pytest.raises(PruneError, match="was not written by vmprune"), owned(tmp_path / "out"):
        pass
    assert lock_file(tmp_path / "out").read_text() == "mine"


def _told(pid: int, host: str, began: float) -> str:
    fields = {"written_by": "vllm-moe-prune", "process": pid, "host": host, "began": began}
    return json.dumps(fields | {"since": "2026-01-01"})


@pytest.mark.parametrize("case", ["alive", "gone", "its number is another's", "another host"])
def test_without_locks_a_process_is_asked_for_by_its_number_and_start(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_locks(*_: Any) -> None:
        raise OSError(errno.ENOLCK, "no locks")

    monkeypatch.setattr(fcntl, "lockf", no_locks)
    own, host = psutil.Process(os.getppid()), socket.gethostname()
    told = {
        "alive": _told(own.pid, host, own.create_time()),
        "gone": _told(2**30, host, 0),
        "its number is another's": _told(own.pid, host, own.create_time() - 100),
        "another host": _told(1, "another", 0),
    }[case]
    lock_file(tmp_path / "out").write_text(told)
    if case in ("alive", "another host"):
        with pytest.raises(PruneError) as caught, owned(tmp_path / "out"):
            pass
        hint = str(caught.value.hint)
        assert hint.endswith(f"if it is gone, remove {lock_file(tmp_path / 'out')}")
    else:
        with owned(tmp_path / "out"):
            pass
        assert names(tmp_path) == []
