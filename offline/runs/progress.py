"""Where progress goes, and how long stages took."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol


class Reporter(Protocol):
    """Where progress goes; the command line draws bars, tests may listen."""

    def stage(self, title: str, total: int) -> None:
        """Begin a stage of ``total`` steps."""

    def step(self, amount: int = 1, note: str = "") -> None:
        """Finish ``amount`` steps of the current stage."""


@contextmanager
def timed(seconds: dict[str, float], stage: str) -> Iterator[None]:
    """Add the block's time to what ``seconds`` has of the stage."""
    begin = time.perf_counter()
    yield
    seconds[stage] = seconds.get(stage, 0.0) + time.perf_counter() - begin
