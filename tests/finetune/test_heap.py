from __future__ import annotations

import subprocess
import sys

_RUN = """
import sys
import numpy as np
import psutil
from offline.finetune.heap import give_blocks_back

if sys.argv[1] == "yes":
    give_blocks_back()
del (large := [np.ones(2**21)])[:]  # 16 MiB: once freed, malloc raises its limit
before = psutil.Process().memory_info().rss
blocks = [(np.ones(2**18), np.ones(2**14)) for _ in range(100)]  # 2 MiB, and one that stays
stay = [small for _, small in blocks]
del blocks
print((psutil.Process().memory_info().rss - before) / 2**20)
"""


def left_over(given_back: str) -> float:
    """Mebibytes that a process still has when it has freed 200 of them."""
    run = [sys.executable, "-c", _RUN, given_back]
    return float(subprocess.run(run, check=True, capture_output=True, text=True).stdout)


def test_freed_blocks_go_back_to_the_system() -> None:
    assert left_over("no") > 100  # or this test could not fail
    assert left_over("yes") < 40
