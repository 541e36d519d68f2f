"""Signals at random moments: what is there is whole, and the same command ends with the same."""

from __future__ import annotations

import random
import signal
import time
from dataclasses import dataclass
from pathlib import Path

from offline.cli.signals import LINE
from tests.campaigns.child import NOT_BEGUN, Child
from tests.campaigns.ground import Command, Ground
from tests.campaigns.state import State, difference, output, state

_IN_TIME = 5.0  # seconds for a signal that can be heard


@dataclass(frozen=True, slots=True)
class Undisturbed:
    """What a command does if nothing happens: what it leaves, and how long it takes.

    ``seconds``: of all; ``after``: of that, since the output has its name.
    """

    left: State
    seconds: float
    after: float

    @classmethod
    def of(cls, ground: Ground, command: Command, place: Path) -> Undisturbed:
        """Run a command."""
        ground.prepare(place, command)
        begin, child = time.monotonic(), Child(command.at(place / "out"), ground.folder)
        named = 0.0 if command.older else _when_named(place / "out", child)
        status, said = child.wait()
        assert status == 0, said
        end = time.monotonic()
        return cls(state(place), end - begin, end - named)


@dataclass(frozen=True, slots=True)
class Kill:
    """How one went: the signal, whether the output had its name, and what was wrong."""

    number: signal.Signals
    named: bool
    wrong: str


def kill(
    ground: Ground,
    command: Command,
    place: Path,
    known: Undisturbed,
    number: signal.Signals,
    draw: random.Random,
    *,
    at_the_end: bool = False,
) -> Kill | None:
    """Disturb a command once; None if it was over before.

    :param at_the_end: the moment is after the output has its name, most often shortly after
    """
    ground.prepare(place, command)
    child, out = Child(command.at(place / "out"), ground.folder), place / "out"
    if at_the_end:
        _when_named(out, child)
        time.sleep(known.after * 10 ** draw.uniform(-4, 0))
    else:
        time.sleep(draw.uniform(0, known.seconds))
    begin = time.monotonic()
    sent = child.send(number)
    status, said = child.wait()
    if not sent or status == 0 or (status in (-number, NOT_BEGUN) and number != signal.SIGKILL):
        return None  # over before, or not begun: it listens to signals from its first line on
    wrong = "" if number == signal.SIGKILL else _wrongly_said(number, status, said, begin)
    named = out.exists() and not command.older
    if named and not wrong:
        wrong = difference(output(state(place)), output(known.left))
    return Kill(number, named, wrong or _continued(ground, command, place, known, named=named))


def _continued(
    ground: Ground, command: Command, place: Path, known: Undisturbed, *, named: bool
) -> str:
    """Give the same command again, and say what is wrong then."""
    status, said = ground.run(command.at(place / "out"))
    if not named:
        return f"status {status}: {said}" if status else difference(state(place), known.left)
    if status != 1 or "already exists" not in said:
        return f"status {status} where OUT is there: {said}"
    ground.run(["runs", "clean", "--in", str(place)])
    return difference(state(place), output(known.left))


def _wrongly_said(number: signal.Signals, status: int, said: str, begin: float) -> str:
    if (took := time.monotonic() - begin) > _IN_TIME:
        return f"ended {took:.1f} s after {number.name}"
    if status != 128 + number:
        return f"status {status} after {number.name}: {said[-300:]}"
    lines = said.strip().splitlines()
    return "" if lines[-1:] == [LINE] and "Traceback" not in said else f"said {said[-300:]}"


def _when_named(out: Path, child: Child) -> float:
    """Wait until an output has its name, or the command is over; return when that was."""
    while not out.exists() and child.runs():
        time.sleep(0.0002)
    return time.monotonic()
