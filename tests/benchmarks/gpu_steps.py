"""Steps that go right and wrong in every way, for the tests of what runs them."""

from __future__ import annotations

import os
import signal
import time

from benchmarks.gpu.command import command
from benchmarks.gpu.steps import Bench

MODULE = "tests.benchmarks.gpu_steps"


def right(bench: Bench) -> None:
    (bench.folder / "model").write_text("of this step alone")
    bench.note(answer=42)
    bench.check(True, "nothing")
    bench.leave_out("graphs")


def wrong(bench: Bench) -> None:
    bench.check(False, "one and one are not three")
    bench.note(sum=2)


def raises(bench: Bench) -> None:
    bench.note(before=1)
    raise RuntimeError("CUDA error: an illegal memory access was encountered")


def dies(bench: Bench) -> None:
    os.kill(os.getpid(), signal.SIGSEGV)


def hangs(bench: Bench) -> None:
    time.sleep(600)


STEPS = {"wrong": wrong, "raises": raises, "dies": dies, "right": right, "hangs": hangs}
main = command("steps", MODULE, STEPS, "Steps.", apart=True)

if __name__ == "__main__":
    main()
