"""The scripted server of the tests, whose every token is known, in a process of its own."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from loadtest.endpoint import Endpoint

_ROOT = Path(__file__).parents[1]


@contextlib.contextmanager
def scripted_server(first: float, gap: float, jitter: float = 0.0) -> Iterator[Endpoint]:
    """Serve until left.

    :param first: seconds to the first token, ``gap`` from one to the next
    :param jitter: standard deviation of the logarithm of a factor, drawn for each request
    """
    command = [sys.executable, "-m", "tests.loadtest.scripted", "--only", "no role"]
    command += ["--first", str(first), "--gap", str(gap), "--jitter", str(jitter)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=_ROOT)
    try:
        assert process.stdout is not None
        yield Endpoint.of(f"http://127.0.0.1:{int(process.stdout.readline())}")
    finally:
        process.kill()
        process.wait()
