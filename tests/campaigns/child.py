"""A command in a process of its own: a fork of this one, in which all is imported already."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import tempfile
from pathlib import Path
from unittest import mock

NOT_BEGUN = 99  # the status of a fork that a signal ends before its command


class Child:
    """`vmprune` in a fork. The signals that end it are real, and what it holds is its own."""

    def __init__(self, words: list[str], folder: Path) -> None:
        self._said = tempfile.TemporaryFile("w+")  # noqa: SIM115 - closed by `wait`
        sys.stdout.flush()
        sys.stderr.flush()
        self.pid = os.fork()
        if self.pid == 0:
            status = NOT_BEGUN
            try:
                os.dup2(self._said.fileno(), 2)
                os.dup2(os.open(os.devnull, os.O_RDWR), 1)
                os.dup2(1, 0)
                signal.signal(signal.SIGINT, signal.default_int_handler)
                signal.signal(signal.SIGTERM, signal.SIG_DFL)
                sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115
                sys.stderr = open(2, "w", closefd=False)  # noqa: SIM115
                status = _main(words, folder)
                sys.stderr.flush()
            finally:
                os._exit(status)

    def runs(self) -> bool:
        """Whether the command is not over."""
        return os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None

    def send(self, number: signal.Signals) -> bool:
        """Send a signal, unless the command is over."""
        if runs := self.runs():
            os.kill(self.pid, number)
        return runs

    def wait(self) -> tuple[int, str]:
        """Wait for the end, and return the exit status and what was said on stderr."""
        _, ended = os.waitpid(self.pid, 0)
        with self._said as said:
            said.seek(0)
            return os.waitstatus_to_exitcode(ended), said.read()


def run(words: list[str], folder: Path, *, fork: bool = True) -> tuple[int, str]:
    """Run a command in a folder to its end.

    :param fork: False runs it in this process, which imports what it needs
    :returns: its exit status and what it said on stderr
    """
    if fork:
        return Child(words, folder).wait()
    with tempfile.TemporaryFile("w+") as said, contextlib.chdir(Path.cwd()):
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            status = _main(words, folder)
        said.seek(0)
        return status, said.read()


def _main(words: list[str], folder: Path) -> int:
    from offline.cli.main import main

    os.chdir(folder)
    with mock.patch.object(sys, "argv", ["vmprune", *words]):
        try:
            main()
        except SystemExit as end:
            return end.code if isinstance(end.code, int) else 1
    return 0
