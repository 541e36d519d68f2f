"""Damages a file of a working copy, lets the target read it, and puts everything back."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from tests.fuzz.judge import Outcome
from tests.fuzz.targets import Target

Seen = Callable[[bytes, Outcome], None]


def run(target: Target, folder: Path, content: bytes) -> Outcome:
    """Let a target read a file with this content.

    :param folder: the ground, which is as before afterwards
    """
    file = folder / target.file
    before, names = file.read_bytes(), _names(folder)
    file.write_bytes(content)
    try:
        outcome = target.act(folder)
        if not outcome.wrong and outcome.status == 0 and (said := target.check(folder)):
            outcome = Outcome(0, outcome.out, outcome.err, said)
        left = sorted(_names(folder) - names - {"made", "made.json"})
        if not outcome.wrong and left:
            outcome = Outcome(outcome.status, outcome.out, outcome.err, f"leaves {left[0]}")
        return outcome
    finally:
        file.write_bytes(before)
        for name in _names(folder) - names:
            shutil.rmtree(folder / name, ignore_errors=True)
            (folder / name).unlink(missing_ok=True)


def _names(folder: Path) -> set[str]:
    return {file.name for file in folder.iterdir()}


def every(
    target: Target, folder: Path, count: int, seen: Seen, *, shrinks: bool, number: int = 0
) -> None:
    """Let hypothesis make inputs, and tell of each.

    :param shrinks: whether a failure that ``seen`` raises is made smaller
    :param number: of the inputs: the same number gives the same ones
    """
    content = (folder / target.file).read_bytes()

    @seed(number)
    @settings(
        max_examples=count,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
        phases=[Phase.generate, Phase.shrink] if shrinks else [Phase.generate],
    )
    @given(st.data())
    def one(data: st.DataObject) -> None:
        damaged = target.damage(data.draw, content)
        seen(damaged, run(target, folder, damaged))

    one()
