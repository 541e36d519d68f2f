"""Runs one input and says what is wrong with how it went: nothing, if all is as it must be."""

from __future__ import annotations

import contextlib
import io
import os
import resource
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

from offline.cli.main import main
from vllm_moe_prune.errors import LINE, PruneError

SECONDS = 20.0
_MEMORY = 64 << 20  # bytes that an input of some kilobytes may take
_PREFIXES = ("error: ", "hint: ", "note: ", "warning: ", "Usage: ", "Try ", "Error: ")


class HangError(BaseException):
    """It took too long."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """How an input went: exit status, what was printed, and what is wrong with that."""

    status: int
    out: str
    err: str
    wrong: str = ""


@contextlib.contextmanager
def limited(seconds: float) -> Iterator[None]:
    """End a block that takes too long."""

    def ring(*_: Any) -> None:
        raise HangError

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def command(*words: str | Path) -> Outcome:
    """Run `vmprune` in this process, as its own main function does."""
    return _run(lambda: _main([str(word) for word in words]))


def function(call: Callable[[], object]) -> Outcome:
    """Call a function that may refuse, and nothing else."""

    def said() -> int:
        try:
            call()
        except PruneError as error:
            print(f"error: {error.message}", file=sys.stderr)
            return 1
        return 0

    return _run(said)


def _main(words: list[str]) -> int:
    with mock.patch.object(sys, "argv", ["vmprune", *words]):
        try:
            main()
        except SystemExit as end:
            return end.code if isinstance(end.code, int) else 1
    return 0


def _run(call: Callable[[], int]) -> Outcome:
    out, err, before = io.StringIO(), io.StringIO(), _peak()
    wrong, status = "", -1
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            with limited(SECONDS):
                status = call()
        except HangError:
            wrong = "hangs"
        except Exception as error:
            last = traceback.extract_tb(error.__traceback__)[-1]
            place = f"{os.path.relpath(last.filename)}:{last.lineno}"
            wrong = f"traceback: {type(error).__name__} at {place}: {str(error)[:200]}"
    told, said = out.getvalue(), err.getvalue()
    grown = _peak() - before
    if not wrong and grown > _MEMORY:
        wrong = f"takes {grown >> 20} MiB"
    return Outcome(status, told, said, wrong or _wrong_lines(status, told, said))


def _wrong_lines(status: int, out: str, err: str) -> str:
    if any(not (c.isprintable() or c == "\n") for c in out + err):
        return "prints a control character"
    if status == 0:
        return ""
    lines = [line for line in err.splitlines() if line.strip()]
    if status == 1 and sum(line.startswith("error: ") for line in lines) != 1:
        return f"{status}: not one line that says error"
    for line in lines:
        if len(line) > LINE + len("warning: "):
            return f"a line of {len(line)} letters"
        if not line.startswith(_PREFIXES):
            return f"says more than one line: {line[:80]}"
    return ""


def _peak() -> int:
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
