"""Progress where there is no terminal: never silent for long, never a flood, nothing if quiet."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading

import pytest

from offline.cli import progress as module
from offline.cli.progress import Lines, Silence, progress


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def said() -> list[str]:
    return []


@pytest.fixture
def lines(clock: Clock, said: list[str]) -> Lines:
    return Lines(lambda line: said.append(re.sub(r"^\d\d:\d\d:\d\d ", "", line)), clock)


def test_a_stage_is_said_when_it_begins(lines: Lines, said: list[str]) -> None:
    lines.stage("loading the model", 1)
    assert said == ["loading the model"]


def test_a_line_for_every_tenth_with_the_time_left(
    lines: Lines, clock: Clock, said: list[str]
) -> None:
    lines.stage("searching", 160)
    for _ in range(160):
        clock.now += 0.5
        lines.step(note="0.625")
    assert len(said) == 11
    assert said[1] == "searching: 10%, 0:08 spent, about 1:12 left, 0.625"
    assert said[-1] == "searching: 100%, 1:20 spent, 0.625"


def test_slow_steps_are_said_every_thirty_seconds(
    lines: Lines, clock: Clock, said: list[str]
) -> None:
    lines.stage("training", 1000)
    for _ in range(6):
        clock.now += 10
        lines.step()
    assert said[1:] == [
        "training: 0%, 0:30 spent, about 2:46:10 left",
        "training: 1%, 1:00 spent, about 2:45:40 left",
    ]


def test_a_stage_without_steps_is_not_silent(lines: Lines, clock: Clock, said: list[str]) -> None:
    lines.stage("loading the model", 1)
    for _ in range(65):
        clock.now += 1
        lines.tick()
    assert said[1:] == ["loading the model: 0:30 spent", "loading the model: 1:00 spent"]


def test_nothing_is_said_after_a_stage_is_over(lines: Lines, clock: Clock, said: list[str]) -> None:
    lines.stage("loading the model", 1)
    lines.step()
    clock.now += 100
    lines.tick()
    assert said == ["loading the model"]


def test_steps_that_are_bytes_are_not_a_flood(lines: Lines, said: list[str]) -> None:
    lines.stage("writing the checkpoint", 10**9)
    for _ in range(10_000):
        lines.step(10**5)
    assert len(said) == 11


def test_the_thread_tells_of_a_stage_that_takes_long(
    said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    heard = threading.Event()

    def write(line: str) -> None:
        said.append(line)
        if len(said) > 1:
            heard.set()

    monkeypatch.setattr(module, "_EVERY_SECONDS", 0.0)
    with Lines(write) as lines:
        lines.stage("loading the model", 1)
        assert heard.wait(20)


def test_quiet_shows_nothing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(module.QUIET, "1")
    with progress() as reporter:
        assert isinstance(reporter, Silence)
        reporter.stage("searching", 4)
        reporter.step(4)
    assert capsys.readouterr() == ("", "")


_PROGRAM = """
from offline.cli.progress import progress
with progress() as reporter:
    reporter.stage("searching [bold]", 20)
    for _ in range(20):
        reporter.step()
"""


def test_a_log_gets_plain_lines_on_stderr() -> None:
    done = subprocess.run(
        [sys.executable, "-c", _PROGRAM], capture_output=True, text=True, check=True
    )
    assert done.stdout == "" and "\x1b" not in done.stderr
    first, *rest = done.stderr.splitlines()
    assert first.endswith(" searching [bold]") and len(rest) == 10
    assert rest[-1].endswith("searching [bold]: 100%, 0:00 spent")


@pytest.mark.parametrize("no_color", [False, True])
def test_no_color_is_honoured_in_a_terminal(no_color: bool) -> None:
    """FORCE_COLOR makes rich believe that there is a terminal."""
    environment = {"FORCE_COLOR": "1", "PATH": "", "TERM": "xterm-256color"}
    if no_color:
        environment["NO_COLOR"] = "1"
    program = "from offline.cli.console import stderr; stderr.print('no', style='red')"
    kept = {k: v for k, v in os.environ.items() if k in ("PYTHONPATH", "HOME")}
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=kept | environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert ("\x1b[31m" in done.stderr) is not no_color
