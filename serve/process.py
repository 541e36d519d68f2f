"""A child process with all its descendants: memory, and an end that leaves nobody behind."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil

from vllm_moe_prune.errors import PruneError
from vllm_moe_prune.reading import read_text

_PROC = Path("/proc")
#: For the environment of children that start Pythons of their own: none of them looks for modules
#: in the folder it was started from, where a user may have a `serve.py` or an `offline.py`.
SAFE_PATH = {"PYTHONSAFEPATH": "1"}


def python_module(name: str) -> list[str]:
    """Return the command that runs a module, looked for everywhere but in the caller's folder."""
    return [sys.executable, "-P", "-m", name]


def group_members(pgid: int) -> list[int]:
    """Process ids of the process group ``pgid``, zombies left out."""
    return [pid for pid in psutil.pids() if _group_of(pid) == pgid and not _is_zombie(pid)]


def _group_of(pid: int) -> int | None:
    try:
        return os.getpgid(pid)
    except OSError:  # the process ended meanwhile, or is not ours to ask about
        return None


def _is_zombie(pid: int) -> bool:
    """Whether a process has ended, and at most waits for its parent to notice."""
    try:
        return bool(psutil.Process(pid).status() == psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return True


def group_bytes(pgid: int) -> int:
    """Memory in bytes that the group holds now: private memory, plus shared memory once.

    Pages of mapped files are left out: the kernel may drop them, and the weights that a server
    reads through a mapping end up in private memory anyway. psutil does not tell them from shared
    memory, so this reads /proc and is 0 where there is none.
    """
    private, shared = 0, 0
    for pid in group_members(pgid):
        try:
            lines = read_text(_PROC / str(pid) / "status").splitlines()
        except PruneError:
            continue
        kib = {
            key: int(value.split()[0])
            for key, _, value in (line.partition(":") for line in lines)
            if key in {"RssAnon", "RssShmem"}
        }
        private += kib.get("RssAnon", 0)
        shared = max(shared, kib.get("RssShmem", 0))
    return (private + shared) * 1024


class MemoryWatch:
    """Samples ``group_bytes`` in a thread; ``peak_bytes`` is the largest value seen so far."""

    def __init__(self, pgid: int, interval: float = 0.5) -> None:
        self.peak_bytes = 0
        self._pgid = pgid
        self._interval = interval
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="memory-watch", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while not self._stop.wait(self._interval):
            self.peak_bytes = max(self.peak_bytes, group_bytes(self._pgid))

    def stop(self) -> None:
        """End the thread."""
        self._stop.set()
        self._thread.join()


def end_group(process: subprocess.Popen[bytes], grace: float = 15.0) -> None:
    """End ``process`` and everything in its process group (it must lead one).

    The leader is asked first and given ``grace`` seconds, so that an engine can release shared
    memory and devices; whoever is left is killed, also when the waiting is interrupted.
    """
    try:
        if process.poll() is None:
            process.terminate()
            process.wait(grace)
    except subprocess.TimeoutExpired:
        pass
    finally:
        _kill_group(process)


def _kill_group(process: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    # Orphans of the group are reaped by init; wait until they no longer hold the port and memory.
    deadline = time.monotonic() + 5
    while group_members(process.pid) and time.monotonic() < deadline:
        time.sleep(0.05)
