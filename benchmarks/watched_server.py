"""A server whose processes can be looked at: their memory and their CPU time."""

from __future__ import annotations

import psutil

from serve.process import group_bytes, group_members
from serve.server import Server


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
        times = [psutil.Process(pid).cpu_times() for pid in group_members(self.group)]
        return sum(t.user + t.system + t.children_user + t.children_system for t in times)
