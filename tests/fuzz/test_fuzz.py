"""Some damaged files of every kind: one line each, nothing wrong in what is taken.

`make fuzz` does the same with 20,000 (tests/fuzz/__main__.py).
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.fuzz.ground import make_ground
from tests.fuzz.judge import Outcome
from tests.fuzz.running import every, run
from tests.fuzz.targets import TARGETS

COUNT = 4
REFUSED = ("a recipe", "a refusal of the hub")  # as they are: its model is not there


@pytest.fixture(scope="module")
def ground(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_ground(tmp_path_factory.mktemp("ground"))


@pytest.mark.parametrize("name", TARGETS)
def test_a_damaged_file_is_one_line(name: str, ground: Path) -> None:
    target = TARGETS[name]
    whole = run(target, ground, (ground / target.file).read_bytes())
    assert not whole.wrong and whole.status == (name in REFUSED), whole

    def seen(content: bytes, outcome: Outcome) -> None:
        assert not outcome.wrong, (outcome, content[:400])

    every(target, ground, COUNT, seen, shrinks=True)
