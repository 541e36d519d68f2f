"""Steps that are checked one by one, none of which keeps the others from being checked.

A step is a function of a `Bench`, which it tells its numbers and whether they are right. On a GPU
each one runs in a process of its own: after an illegal access to memory a process has no GPU any
more, and one that hangs is ended in time.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from serve.logs import last_error

LIMIT = 580.0  # seconds of a whole run: under ten minutes
_PATIENCE = 3  # times that on a CPU, where nothing is measured


@dataclass(slots=True)
class Bench:
    """Where a step runs, what it found there, and what was wrong with that."""

    device: str
    tiny: bool
    folder: Path  # of its own, gone afterwards
    numbers: dict[str, Any] = field(default_factory=dict)
    wrong: list[str] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)

    @property
    def on_gpu(self) -> bool:
        """Whether there are kernels to launch and graphs to record."""
        return self.device.startswith("cuda")

    def note(self, **numbers: Any) -> None:
        """Keep what was measured, also where the step fails later on."""
        self.numbers |= numbers

    def check(self, right: bool, what: str) -> None:
        """Say of something that was to be true whether it is; the step goes on."""
        if not right:
            self.wrong.append(what)

    def leave_out(self, what: str) -> None:
        """Say what this device cannot show."""
        self.left_out.append(what)


Step = Callable[[Bench], None]


def run_here(step: Step, device: str, *, tiny: bool) -> dict[str, Any]:
    """Run one step in this process and return what it found."""
    begin = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="bench-gpu-") as scratch:
        bench = Bench(device, tiny, Path(scratch))
        try:
            step(bench)
        except Exception as error:  # whatever a kernel or vLLM raises is a result here
            traceback.print_exc()
            bench.wrong.append(f"{type(error).__name__}: {str(error).strip()[:600]}")
    return _result(bench.wrong, begin, bench.left_out, bench.numbers)


def run_apart(module: str, name: str, device: str, *, tiny: bool, seconds: float) -> dict[str, Any]:
    """Run one step of a module in a process of its own, for ``seconds`` at most."""
    begin = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="bench-gpu-") as scratch:
        found, log = Path(scratch) / "found.json", Path(scratch) / "log"
        command = [sys.executable, "-m", module, "--device", device, "--step", name]
        command += ["--tiny" if tiny else "--full", "--result", str(found)]
        with log.open("wb") as said, _ending_first():
            # Its scratch folders go with ours, also if it is killed.
            child = subprocess.Popen(
                command,
                stdout=said,
                stderr=said,
                start_new_session=True,
                env={**os.environ, "TMPDIR": scratch},
            )
            try:
                code: int | None = child.wait(seconds)
            except subprocess.TimeoutExpired:
                code = None
            finally:
                _end(child)
        if found.is_file():
            result: dict[str, Any] = json.loads(found.read_text())
            return result
        text = log.read_text(errors="replace")
        sys.stderr.write(text[-4000:])
        how = f"took more than {seconds:.0f} s" if code is None else f"ended with {code}"
        return _result([f"{how}: {last_error(text)}"], begin)


@contextmanager
def _ending_first() -> Iterator[None]:
    """Within this context this process, told to end, ends what it started first."""
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _end(child: subprocess.Popen[bytes]) -> None:
    """End a process and all that it started."""
    try:
        os.killpg(child.pid, signal.SIGKILL)
    except ProcessLookupError:
        return
    child.wait()


def _result(
    wrong: list[str],
    begin: float,
    left_out: list[str] | None = None,
    numbers: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    result: dict[str, Any] = {
        "passed": not wrong,
        "seconds": round(time.perf_counter() - begin, 1),
    }
    if wrong:
        result["wrong"] = wrong
    if left_out:
        result["left_out"] = left_out
    if numbers:
        result["numbers"] = dict(numbers)
    return result


def run_all(
    module: str,
    steps: Mapping[str, Step],
    device: str,
    *,
    tiny: bool,
    apart: bool,
    tell: Callable[[str], None],
) -> dict[str, dict[str, Any]]:
    """Run steps one after the other, in `LIMIT` together, and return what each one found."""
    limit = LIMIT * (_PATIENCE if device == "cpu" else 1)
    end, found = time.monotonic() + limit, {}
    for name, step in steps.items():
        left = end - time.monotonic()
        if left < 1:
            found[name] = _result([f"not begun after {limit:.0f} s"], time.perf_counter())
        elif apart:
            found[name] = run_apart(module, name, device, tiny=tiny, seconds=left)
        else:
            found[name] = run_here(step, device, tiny=tiny)
        result = found[name]
        tell(f"{name}: {'passed' if result['passed'] else 'FAILED'} in {result['seconds']} s")
    return found


def report(name: str, steps: Mapping[str, dict[str, Any]], place: dict[str, Any]) -> dict[str, Any]:
    """Return the line of JSON of a run; its value counts the steps that passed."""
    return {
        "name": name,
        "value": sum(bool(step["passed"]) for step in steps.values()),
        "unit": f"steps passed of {len(steps)}",
        "detail": {**place, "steps": dict(steps)},
    }
