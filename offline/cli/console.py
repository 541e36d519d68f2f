"""What commands show to people: progress bars with the time left, and sizes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

stderr = Console(stderr=True)


class Bars:
    """Progress bars on stderr, one per stage; the previous stage is complete when one begins."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._current: TaskID | None = None

    def stage(self, title: str, total: int) -> None:
        """Begin a stage of ``total`` steps."""
        self._finish()
        self._current = self._progress.add_task(title, total=total, note="")

    def step(self, amount: int = 1, note: str = "") -> None:
        """Finish ``amount`` steps of the current stage."""
        if self._current is not None:
            self._progress.update(self._current, advance=amount, note=note)

    def _finish(self) -> None:
        if self._current is not None:
            task = self._progress.tasks[self._current]
            self._progress.update(self._current, completed=task.total)


@contextmanager
def bars() -> Iterator[Bars]:
    """Show progress bars while the block runs."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    with Progress(*columns, console=stderr) as progress:
        yield Bars(progress)
