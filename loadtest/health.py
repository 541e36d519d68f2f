"""Whether the client could keep up: what it measures is the server only while it can."""

from __future__ import annotations

import time
from array import array
from collections.abc import Iterable

import gevent  # type: ignore[import-untyped]
import numpy as np
from pydantic import BaseModel, ConfigDict

_PERIOD = 0.01
_BUSY = 0.9  # of a core
_SHORT = 0.2  # share of gaps that cannot be the server's


class Health(BaseModel):
    """The client of one measurement; of several processes, the worst of each.

    ``lag_ms_p50`` to ``lag_ms_max``: how late the loop that takes the times was, sampled every
    10 ms. ``cpu``: share of a core. ``short_gaps``: share of chunks within 1 ms of the last.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    processes: int = 1
    seconds: float = 0.0
    lag_ms_p50: float = 0.0
    lag_ms_p95: float = 0.0
    lag_ms_p99: float = 0.0
    lag_ms_max: float = 0.0
    cpu: float = 0.0
    short_gaps: float = 0.0

    def complaints(self, limit_ms: float) -> list[str]:
        """Why the times cannot be believed; empty if they can, or if ``limit_ms`` is 0."""
        if limit_ms <= 0:
            return []
        found = []
        if self.lag_ms_p95 > limit_ms:
            found.append(f"its loop was {self.lag_ms_p95:.0f} ms late (p95; {limit_ms:g} allowed)")
        if self.cpu > _BUSY:
            found.append(f"it used {100 * self.cpu:.0f} % of a core")
        if self.short_gaps > _SHORT and self.lag_ms_p95 > limit_ms / 4:
            found.append(f"{100 * self.short_gaps:.0f} % of chunks lay ready when it came to them")
        return found

    @staticmethod
    def worst(parts: Iterable[Health]) -> Health:
        """Several processes as one."""
        found = list(parts)
        if not found:
            return Health(processes=0)
        names = ("seconds", "lag_ms_p50", "lag_ms_p95", "lag_ms_p99", "lag_ms_max", "cpu")
        values = {name: max(getattr(part, name) for part in found) for name in names}
        return Health(
            processes=sum(part.processes for part in found),
            short_gaps=max(part.short_gaps for part in found),
            **values,
        )


class Heartbeat:
    """Wakes every 10 ms in the loop that takes the times, and notes by how much it is late."""

    def __init__(self) -> None:
        self._lags = array("f")
        self._began = time.perf_counter()
        self._cpu = time.process_time()
        self._greenlet = gevent.spawn(self._run)

    def _run(self) -> None:
        last = time.perf_counter()
        while True:
            gevent.sleep(_PERIOD)
            now = time.perf_counter()
            self._lags.append(max(0.0, now - last - _PERIOD) * 1000)
            last = now

    def health(self) -> Health:
        """What was seen so far."""
        seconds = time.perf_counter() - self._began
        lags = np.frombuffer(self._lags, dtype=np.float32) if self._lags else np.zeros(1)
        p50, p95, p99 = (float(value) for value in np.percentile(lags, [50, 95, 99]))
        return Health(
            seconds=seconds,
            lag_ms_p50=p50,
            lag_ms_p95=p95,
            lag_ms_p99=p99,
            lag_ms_max=float(lags.max()),
            cpu=(time.process_time() - self._cpu) / seconds if seconds > 0.5 else 0.0,
        )

    def stop(self) -> None:
        """End it."""
        self._greenlet.kill()
