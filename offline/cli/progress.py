"""Progress on stderr: bars in a terminal, lines in a log, nothing with --quiet."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from offline.cli.console import stderr
from offline.cli.quiet import QUIET

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

    from offline.runs.progress import Reporter

_EVERY_SECONDS = 30.0
_EVERY_SHARE = 0.1


@contextmanager
def progress() -> Iterator[Reporter]:
    """Give a reporter for the length of the block that shows people what fits where they look."""
    if os.environ.get(QUIET):
        yield Silence()
    elif stderr.is_terminal:
        with _bars() as shown:
            yield Bars(shown)
    else:
        with Lines() as lines:
            yield lines


class Silence:
    """Shows nothing."""

    def stage(self, title: str, total: int) -> None:
        """Begin a stage."""

    def step(self, amount: int = 1, note: str = "") -> None:
        """Finish some steps."""


class Bars:
    """A bar for each stage; the previous stage is complete when one begins.

    Nothing is drawn before the first: the hub's client may show a download of its own.
    """

    def __init__(self, shown: Progress) -> None:
        self._shown = shown
        self._current: TaskID | None = None

    def stage(self, title: str, total: int) -> None:
        """Begin a stage of ``total`` steps."""
        self._finish()
        self._shown.start()
        self._current = self._shown.add_task(title, total=total, note="")

    def step(self, amount: int = 1, note: str = "") -> None:
        """Finish ``amount`` steps of the current stage."""
        if self._current is not None:
            self._shown.update(self._current, advance=amount, note=note)

    def _finish(self) -> None:
        if self._current is not None:
            task = self._shown.tasks[self._current]
            self._shown.update(self._current, completed=task.total)


class Lines:
    """A line when a stage begins, then one every 10 % or 30 seconds, with the time left.

    A thread of its own tells of a stage that takes long without a step, so that a log never stays
    silent; it ends with the block.

    :param write: takes a line without its end
    :param clock: seconds, only ever rising
    """

    def __init__(
        self,
        write: Callable[[str], None] = lambda line: print(line, file=sys.stderr, flush=True),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._write = write
        self._clock = clock
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._title, self._total, self._done, self._note = "", 0, 0, ""
        self._began = self._said = clock()
        self._said_done = 0

    def __enter__(self) -> Lines:
        threading.Thread(target=self._watch, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()

    def stage(self, title: str, total: int) -> None:
        """Begin a stage of ``total`` steps."""
        with self._lock:
            self._title, self._total, self._done, self._note = title, total, 0, ""
            self._began = self._said = self._clock()
            self._said_done = 0
            self._write(f"{time.strftime('%H:%M:%S')} {title}")

    def step(self, amount: int = 1, note: str = "") -> None:
        """Finish ``amount`` steps of the current stage."""
        with self._lock:
            self._done += amount
            self._note = note or self._note
            whole = self._total > 1 and self._done >= self._total > self._said_done
            if whole or self._done - self._said_done >= max(2, _EVERY_SHARE * self._total):
                self._say()
            else:
                self._say_if_long_ago()

    def tick(self) -> None:
        """Say where the stage is if nothing was said for long."""
        with self._lock:
            self._say_if_long_ago()

    def _say_if_long_ago(self) -> None:
        under_way = self._title and self._done < self._total
        if under_way and self._clock() - self._said >= _EVERY_SECONDS:
            self._say()

    def _say(self) -> None:
        now = self._clock()
        self._said, self._said_done = now, self._done
        spent = now - self._began
        share = self._done / self._total if self._total else 1.0
        times = f"{_time(spent)} spent"
        if 0 < share < 1:
            times += f", about {_time(spent / share - spent)} left"
        how_far = f"{share:.0%}, " if self._total > 1 else ""
        note = f", {self._note}" if self._note else ""
        self._write(f"{time.strftime('%H:%M:%S')} {self._title}: {how_far}{times}{note}")

    def _watch(self) -> None:
        while not self._ended.wait(1.0):
            self.tick()


def _time(seconds: float) -> str:
    """Write seconds as 0:05, 12:30 or 3:00:00."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


@contextmanager
def _bars() -> Iterator[Progress]:
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}", markup=False),
    )
    shown = Progress(*columns, console=stderr)
    try:
        yield shown
    finally:
        shown.stop()
