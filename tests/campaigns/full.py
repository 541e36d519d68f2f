"""Small file systems, larger step by step: one line each, and with space the same bytes."""

from __future__ import annotations

import os
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.campaigns.child import Child
from tests.campaigns.ground import Command, Ground
from tests.campaigns.state import State, difference, state

_LARGE = 256 << 20
_BLOCK = 4096  # bytes that a file system of memory gives at once


@contextmanager
def small_disk(place: Path) -> Iterator[None]:
    """Have a file system of its own at a folder, for the length of a block; for root alone."""
    place.mkdir(exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={_LARGE}", "none", place], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", place], check=True)


def resize(place: Path, size: int) -> None:
    """Give the file system another size, in bytes."""
    options = f"remount,size={size}"
    subprocess.run(["mount", "-o", options, place], check=True)


def most_used(ground: Ground, command: Command, place: Path) -> tuple[int, State]:
    """Run a command where there is space; return how many bytes it took at most, and its state."""
    with small_disk(place):
        child = Child(command.at(place / "out"), ground.folder)
        peak, over = [0], threading.Event()

        def watch() -> None:
            while not over.wait(0.0005):
                peak[0] = max(peak[0], _used(place))

        watcher = threading.Thread(target=watch)
        watcher.start()
        status, said = child.wait()
        over.set()
        watcher.join()
        assert status == 0, said
        return peak[0], state(place)


def fill(
    ground: Ground, command: Command, place: Path, size: int, wanted: State
) -> tuple[bool, str]:
    """Run a command on a disk of a size, then with space.

    :returns: whether the disk was full, and what was wrong
    """
    with small_disk(place):
        resize(place, size)
        words = command.at(place / "out")
        status, said = ground.run(words)
        if status == 0:
            return False, difference(state(place), wanted)
        if wrong := _wrongly_said(status, said):
            return True, wrong
        if (place / "out").exists():
            return True, "OUT is there"
        resize(place, _LARGE)
        status, said = ground.run(words)
        return True, said[-300:] if status else difference(state(place), wanted)


def sizes(peak: int, steps: int) -> list[int]:
    """Return so many sizes, or fewer, from one block to just enough: the first ones are closest."""
    ratio = (peak / _BLOCK) ** (1 / steps)
    return sorted({_BLOCK * round(ratio**step) for step in range(steps)} | {peak})


def _wrongly_said(status: int, said: str) -> str:
    lines = [line for line in said.splitlines() if line.startswith("error: ")]
    if status != 1 or len(lines) != 1 or "Traceback" in said:
        return f"status {status}: {said[-300:]}"
    # Where a run has no room for itself the line is the system's own.
    return "" if "space" in lines[0] or "has" in lines[0] else lines[0]


def _used(place: Path) -> int:
    found = os.statvfs(place)
    return (found.f_blocks - found.f_bfree) * found.f_frsize
