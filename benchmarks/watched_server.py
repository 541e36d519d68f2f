"""A server whose processes can be looked at: their memory and their CPU time."""

from __future__ import annotations

import os
from pathlib import Path

from serve.process import group_bytes, group_members
from serve.server import Server

_TICK = os.sysconf("SC_CLK_TCK")


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
