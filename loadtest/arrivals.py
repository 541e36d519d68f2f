"""A socket that knows when its bytes came, however late they are read.

Under load the one thread that takes all times reads what came some milliseconds ago. Linux stamps
bytes as they come (``SO_TIMESTAMPNS``, see socket(7)) and says so to who asks; where several pieces
came before they were read, the stamp is that of the last. Other systems, and TLS, whose bytes mean
nothing before they are deciphered, keep the time of reading.
"""

from __future__ import annotations

import contextlib
import socket
import struct
import sys
import time
from typing import Any

_STAMPED = 35  # SO_TIMESTAMPNS and SCM_TIMESTAMPNS, which the standard library does not name
_STAMP = struct.Struct("@qq")  # seconds and nanoseconds of the wall clock
_SPACE = socket.CMSG_SPACE(_STAMP.size)


class ArrivalSocket(socket.socket):
    """``arrived``: when the last bytes that were read had come, by ``time.perf_counter``."""

    arrived = 0.0

    @classmethod
    def of(cls, other: socket.socket) -> ArrivalSocket:
        """Take over a connected socket."""
        timeout = other.gettimeout()
        own = cls(other.family, other.type, other.proto, fileno=other.detach())
        own.settimeout(timeout)
        own.arrived = time.perf_counter()
        if sys.platform == "linux":
            with contextlib.suppress(OSError):  # then it is the time of reading
                own.setsockopt(socket.SOL_SOCKET, _STAMPED, 1)
        return own

    def recv_into(self, buffer: Any, nbytes: int = 0, flags: int = 0) -> int:
        """Read, and note when it had come."""
        view = memoryview(buffer)[: nbytes or None]
        count, told, _, _ = self.recvmsg_into([view], _SPACE, flags)
        # Never before what was read before: the wall clock may have been set meanwhile.
        self.arrived = max(self.arrived, _came(told))
        return count


def _came(told: list[tuple[int, int, bytes]]) -> float:
    """When what was just read had come: now, where there is no stamp."""
    for level, kind, data in told:
        if (level, kind, len(data)) == (socket.SOL_SOCKET, _STAMPED, _STAMP.size):
            seconds, nanoseconds = _STAMP.unpack(data)
            wall, now = time.time_ns(), time.perf_counter()  # one after the other
            since: int = wall - seconds * 10**9 - nanoseconds
            return now - max(0.0, since / 1e9)
    return time.perf_counter()
