"""Who works at an output: one process at a time, which a lock file beside the output names."""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any

from offline.runs.disk import one_line_if_full
from offline.runs.owned import WRITER, read_stamp, refuse_foreign, run_path, shortened, stamp
from vllm_moe_prune.errors import PruneError
from vllm_moe_prune.reading import parse_json

WAIT = "wait until it is done, or choose another --out"
_LOG = logging.getLogger(__name__)
_TAKEN = (errno.EACCES, errno.EAGAIN)
_SAME = 2.0  # seconds by which two readings of one process's start may differ
_MOST = 4096  # bytes of a lock file that are read


@dataclass(slots=True)
class _Held:
    """A place that this process works at.

    ``who``: what its lock file says; not read again, as closing the file would drop the lock.
    ``run``: the one that it has opened there, its settings as a digest.
    """

    who: dict[str, Any]
    run: str = ""


_HELD: dict[tuple[int, Path], _Held] = {}  # process, place


@contextmanager
def owned(out: Path) -> Iterator[None]:
    """Be the only process that works at ``out`` and at ``OUT.run`` while a block lasts.

    The system drops the lock when a process ends, however that happens: what a killed one left is
    taken over, with a note. Inside a place that this process works at nothing more is locked.

    :raises PruneError: if another process works there; it is named
    """
    place = _place(out)
    if any(_within(place, held) for pid, held in _HELD if pid == os.getpid()):
        yield
        return
    file = lock_file(place)
    lock, who = _take(file, place)
    _HELD[os.getpid(), place] = _Held(who)
    try:
        with one_line_if_full(out, "free some space: the same command goes on"):
            yield
    finally:
        del _HELD[os.getpid(), place]
        with suppress(OSError):  # its folder may be gone
            file.unlink(missing_ok=True)
        lock.close()


def opened(out: Path, settings: str) -> None:
    """Remember which run this process works on: its result will say so in its manifest."""
    key = os.getpid(), _place(out)
    if key in _HELD:
        _HELD[key].run = settings


def run_of(out: Path) -> str:
    """Return what `opened` was told for an output; nothing if no run is worked on."""
    held = _HELD.get((os.getpid(), _place(out)))
    return held.run if held else ""


def lock_file(out: Path) -> Path:
    """Return where it says who works at an output."""
    return out.with_name(f".{shortened(out.name)}.vmprune-lock")


def at_work(out: Path) -> str | None:
    """Return which process works at an output, as far as that can be told; None if none does."""
    held = _HELD.get((os.getpid(), _place(out)))
    told = held.who if held else read_stamp(lock_file(out))
    return None if told is None or _is_gone(told) else _named(told)


def release(out: Path) -> None:
    """Remove the lock of a process that is gone."""
    if lock_file(out).exists() and at_work(out) is None:
        with owned(out):
            pass


def _place(out: Path) -> Path:
    return out.parent.resolve() / out.name


def _within(place: Path, held: Path) -> bool:
    return any(one == place or one in place.parents for one in (held, run_path(held)))


def _take(file: Path, out: Path) -> tuple[IO[str], dict[str, Any]]:
    """Open the lock file, lock it and say who does: one that is removed meanwhile counts not."""
    while True:
        lock = os.fdopen(os.open(file, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666), "r+")
        try:
            locks = _lock(lock)
            told = _told(lock, file)
            if locks is False or (locks is None and told is not None and not _is_gone(told)):
                other = "another process" if told is None else _named(told)
                raise PruneError(
                    f"{other} works at {out}",
                    hint=WAIT + ("" if locks is False else f"; if it is gone, remove {file}"),
                )
            if not _is_named(lock, file):
                lock.close()
                continue
            who = _sign(lock, out)
        except BaseException:
            lock.close()
            raise
        if told is not None:
            _LOG.warning("note: %s did not end its work at %s; it goes on here", _named(told), out)
        return lock, who


def _lock(lock: IO[str]) -> bool | None:
    """Lock a file; False if another process has it, None where the file system has no locks.

    These locks are not inherited: an orphaned child of a killed command holds nothing.
    """
    try:
        fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return False if error.errno in _TAKEN else None
    return True


def _told(lock: IO[str], file: Path) -> dict[str, Any] | None:
    """Return what a lock file says; None if it is new."""
    text = lock.read(_MOST)
    if not text:
        return None
    try:
        told = parse_json(text, str(file))
    except PruneError:
        told = None
    if not isinstance(told, dict) or told.get("written_by") != WRITER:
        refuse_foreign(file)
    return told


def _sign(lock: IO[str], out: Path) -> dict[str, Any]:
    lock.seek(0)
    lock.truncate()
    now = datetime.now(UTC).isoformat(timespec="seconds")
    began = _began(os.getpid())
    who = {"process": os.getpid(), "host": socket.gethostname(), "since": now, "began": began}
    lock.write(stamp(work_at=out.name, **who))
    lock.flush()
    return who


def _is_named(lock: IO[str], file: Path) -> bool:
    """Whether an open file is still the one of that name."""
    with suppress(FileNotFoundError):
        return os.path.samestat(os.fstat(lock.fileno()), file.stat())
    return False


def _is_gone(told: dict[str, Any]) -> bool:
    """Whether the process that a lock file names is known to have ended."""
    pid, began = told.get("process"), told.get("began")
    if told.get("host") != socket.gethostname() or not isinstance(pid, int):
        return False
    now = _began(pid)
    return now is None or (isinstance(began, int | float) and abs(began - now) > _SAME)


def _began(pid: int) -> float | None:
    """Return when a process of this machine began, in seconds; None if there is none."""
    import psutil

    try:
        return float(psutil.Process(pid).create_time())
    except (psutil.Error, ValueError, OverflowError):
        return None


def _named(told: dict[str, Any]) -> str:
    pid, host, since = (str(told.get(name))[:64] for name in ("process", "host", "since"))
    return f"process {pid} on {host}, since {since},"
