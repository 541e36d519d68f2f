"""Two servers up at once and loaded in turn: ratios of short rounds, and how sure their median is.

What else a machine does changes from one second to the next. So blocks are short, a round is
A B B A, and no ratio crosses rounds. CPU time per token is measured beside speed: other
programs change it less. It is not free of them: vLLM's processes poll while they wait.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from loadtest.asking import ask
from loadtest.metrics import summarise
from loadtest.results import Settings
from serve.process import group_bytes, group_members
from serve.server import Server
from vllm_moe_prune.errors import PruneError

_TICK = os.sysconf("SC_CLK_TCK")
_QUIET_SECONDS = 1.5  # vLLM's processes go on polling for a second after the last request


class WatchedServer(Server):
    """A server whose processes can be looked at."""

    def __enter__(self) -> WatchedServer:
        super().__enter__()
        return self

    @property
    def group(self) -> int:
        """Id of its process group."""
        assert self._process is not None
        return self._process.pid

    @property
    def resident_bytes(self) -> int:
        """Memory that its processes hold now."""
        return group_bytes(self.group)

    @property
    def cpu_seconds(self) -> float:
        """CPU time, user and system, of its processes and of their children that have ended."""
        ticks = 0
        for pid in group_members(self.group):
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            ticks += sum(map(int, fields[11:15]))  # utime, stime, cutime, cstime
        return ticks / _TICK


@dataclass(frozen=True, slots=True)
class Load:
    """A block of work: ``requests`` of the settings' workload, ``users`` at a time."""

    settings: Settings
    users: int
    requests: int


@dataclass(frozen=True, slots=True)
class Block:
    """What one block of work took."""

    tokens: int
    seconds: float
    cpu_seconds: float


def measure_block(server: WatchedServer, load: Load) -> Block:
    """Ask once to wake the server up, then measure one block.

    :raises PruneError: if an answer was not complete: the work would not be equal
    """
    ask(server.url, 1, 1, load.settings, cap=2)
    before = server.cpu_seconds
    records = ask(server.url, load.users, load.requests, load.settings, cap=None)
    cpu = server.cpu_seconds - before
    broken = next((record for record in records if not record.complete), None)
    if broken is not None:
        raise PruneError(f"{server.spec.model}: {broken.error}", hint=f"see {server.log}")
    summary = summarise(records, load.users)
    return Block(sum(record.tokens for record in records), summary.seconds, cpu)


@dataclass(frozen=True, slots=True)
class Ratios:
    """Side B over side A, a value for each round."""

    tokens_per_second: tuple[float, ...]
    cpu_per_token: tuple[float, ...]


def alternate(
    first: WatchedServer,
    second: WatchedServer,
    load: Load,
    rounds: int,
    tell: Callable[[str], None],
) -> Ratios:
    """Measure ``rounds`` times A B B A; A is ``first``."""
    speeds, costs = [], []
    for number in range(rounds):
        blocks: dict[bool, list[Block]] = {False: [], True: []}
        for is_second in (False, True, True, False):
            time.sleep(_QUIET_SECONDS)
            blocks[is_second].append(measure_block(second if is_second else first, load))
        a, b = blocks[False], blocks[True]
        speeds.append(_speed(b) / _speed(a))
        costs.append(_cost(b) / _cost(a))
        tell(
            f"  round {number + 1} of {rounds}: {_speed(a):.1f} and {_speed(b):.1f} output "
            f"tokens/s, ratio {speeds[-1]:.3f}, of CPU time {costs[-1]:.3f}"
        )
    return Ratios(tuple(speeds), tuple(costs))


def check_memory(needed: int) -> None:
    """Refuse to start a second server as large as the first where it would not fit.

    :param needed: bytes
    :raises PruneError: saying how much is there
    """
    lines = Path("/proc/meminfo").read_text().splitlines()
    available = next(int(x.split()[1]) for x in lines if x.startswith("MemAvailable:")) * 1024
    if available < needed * 1.1:
        raise PruneError(
            f"a second server needs {needed / 2**30:.1f} GiB, {available / 2**30:.1f} are free",
            hint="end other programs, or choose a smaller --hidden and --intermediate",
        )


def _speed(blocks: Sequence[Block]) -> float:
    return sum(block.tokens for block in blocks) / sum(block.seconds for block in blocks)


def _cost(blocks: Sequence[Block]) -> float:
    return sum(block.cpu_seconds for block in blocks) / sum(block.tokens for block in blocks)


def median_of(values: Sequence[float], level: float = 0.95) -> dict[str, Any]:
    """The median of ``values``, all of them, and an interval for the median they are drawn from.

    The interval runs from the k-th lowest to the k-th highest value: it holds the median with
    1 - 2 P(fewer than k of n fair coins show heads), whatever the distribution. k is the largest
    with which that is at least ``level``, or 1: the ``confidence`` says what it is.
    """
    ordered, n = sorted(values), len(values)
    confidence = [1 - 2 * sum(math.comb(n, i) for i in range(k)) / 2**n for k in range(n // 2 + 1)]
    k = max((k for k in range(1, n // 2 + 1) if confidence[k] >= level), default=1)
    return {
        "median": round(median(ordered), 3),
        "interval": [round(ordered[k - 1], 3), round(ordered[-k], 3)],
        "confidence": round(confidence[k], 3) if n > 1 else 0.0,
        "per_round": [round(value, 3) for value in values],
    }
