"""Two of the same command at once: one does the work, the other is told who does."""

from __future__ import annotations

import random
import time
from pathlib import Path

from tests.campaigns.child import Child
from tests.campaigns.ground import Command, Ground
from tests.campaigns.kills import Undisturbed
from tests.campaigns.state import difference, state

_TOLD = ("works at", "already exists")  # the second came while the first worked, or afterwards


def pair(
    ground: Ground, command: Command, place: Path, known: Undisturbed, draw: random.Random
) -> str:
    """Start a command twice, at once or one a little later; return what was wrong."""
    ground.prepare(place, command)
    words = command.at(place / "out")
    first = Child(words, ground.folder)
    time.sleep(draw.choice((0.0, draw.uniform(0, known.seconds))))
    second = Child(words, ground.folder)
    ends = [first.wait(), second.wait()]
    if sum(status == 0 for status, _ in ends) != (2 if command.older and _in_turn(ends) else 1):
        return f"statuses {[status for status, _ in ends]}: {ends[0][1]} {ends[1][1]}"
    for status, said in ends:
        lines = [line for line in said.splitlines() if line.startswith("error: ")]
        if status and not (status == 1 and len(lines) == 1 and any(w in lines[0] for w in _TOLD)):
            return f"status {status}: {said[-300:]}"
    return difference(state(place), known.left)


def _in_turn(ends: list[tuple[int, str]]) -> bool:
    """Whether one came after the other was done, which `--force` allows."""
    return all(status == 0 for status, _ in ends)
