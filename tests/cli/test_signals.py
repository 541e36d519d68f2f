"""SIGINT and SIGTERM end a command in time, with one line."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable
from contextlib import suppress

import click
import pytest

from offline.cli import main as main_module
from offline.cli import signals


def waits() -> None:
    time.sleep(60)


def minds_nothing() -> None:
    """As a library does that computes for long, or takes every error for its own."""
    for _ in range(600):
        with suppress(KeyboardInterrupt):
            time.sleep(0.1)


class Slow:
    """Goes away for a second."""

    def __del__(self) -> None:
        time.sleep(1)


def is_just_destroying() -> None:
    slow = Slow()
    del slow
    time.sleep(60)


def makes_an_error_of_it() -> None:
    """As torch does where it was about to leave a context."""
    try:
        time.sleep(60)
    finally:
        raise RuntimeError("trying to pop from empty mode stack")


@pytest.mark.parametrize(
    ("work", "number", "status"),
    [
        (waits, signal.SIGTERM, 143),
        (waits, signal.SIGINT, 130),
        (makes_an_error_of_it, signal.SIGTERM, 143),
        (makes_an_error_of_it, signal.SIGINT, 130),
        (is_just_destroying, signal.SIGTERM, 143),
        (is_just_destroying, signal.SIGINT, 130),
        (minds_nothing, signal.SIGTERM, 128 + signal.SIGTERM),
        (minds_nothing, signal.SIGINT, 128 + signal.SIGINT),
    ],
)
def test_a_command_ends_with_one_line(
    work: Callable[[], None],
    number: signal.Signals,
    status: int,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(signals, "SECONDS", 20 if work is is_just_destroying else 0.3)
    monkeypatch.setattr(main_module, "cli", click.command()(work))
    monkeypatch.setattr(sys, "argv", ["vmprune"])
    read, write = os.pipe()
    if (pid := os.fork()) == 0:
        code = 99
        try:
            signal.signal(signal.SIGINT, signal.default_int_handler)
            os.write(write, b".")
            main_module.main()
        except SystemExit as end:
            code = int(str(end.code))
        finally:
            sys.stderr.flush()
            os._exit(code)
    os.read(read, 1)
    time.sleep(0.5)
    begin = time.monotonic()
    os.kill(pid, number)
    _, ended = os.waitpid(pid, 0)
    assert time.monotonic() - begin < 5
    assert os.waitstatus_to_exitcode(ended) == status
    assert capfd.readouterr().err.strip() == "interrupted; the same command continues"


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_when_the_work_is_just_over_is_no_traceback(
    number: signal.Signals,
    status: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """click turns what comes within it into its own exception, and is over by then."""
    monkeypatch.setattr(main_module, "cli", lambda **_: signal.raise_signal(number))
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's jobs ignore it
    try:
        with pytest.raises(SystemExit) as ended:
            main_module.main()
    finally:
        signal.signal(signal.SIGINT, before)
    assert ended.value.code == status
    assert capsys.readouterr().err.strip() == signals.LINE


def test_handlers_are_as_before_afterwards() -> None:
    numbers = (signal.SIGTERM, signal.SIGINT)
    before = [signal.getsignal(number) for number in numbers]
    with signals.ending_in_time():
        assert signal.getsignal(signal.SIGTERM) is not before[0]
    assert [signal.getsignal(number) for number in numbers] == before
    assert signal.set_wakeup_fd(-1) == -1
