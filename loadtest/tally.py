"""What a running test has seen so far, in little memory: numbers per request, gaps as a histogram.

For locust's page, its CSV and HTML and the verdict at the end; records and `summarise` are exact.
"""

from __future__ import annotations

from array import array
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from loadtest.metrics import SHORT_GAP_MS, Record, Slo

_STEP = 1.01  # a histogram's bins are 1 % wide
_LEAST_MS = 0.01
_BINS = 2000  # to 10^6.6 ms

# Name -> (what it is, its unit), in the order in which they are shown.
METRICS = {
    "ttft": ("time to first token", "ms"),
    "answer": ("time to first answer token, after thinking", "ms"),
    "tpot": ("time per output token, after the first", "ms"),
    "itl": ("gap between chunks", "ms"),
    "e2e": ("end-to-end latency", "ms"),
    "tokens_per_second": ("output tokens per second of one request", "tokens/s"),
    "output_tokens": ("output tokens of one answer", "tokens"),
}
COLUMNS = ("metric", "unit", "count", "mean", "p50", "p95", "p99", "max")


@dataclass
class Tally:
    """The requests of a test that ended, by outcome, and the figures of the answered ones."""

    slo: Slo = field(default_factory=Slo)
    complete: int = 0
    failed: int = 0
    cut: int = 0
    cancelled: int = 0
    good: int = 0
    tokens: int = 0
    counted: int = 0  # answers whose tokens the server counted
    late: int = 0
    seconds: tuple[float, float] = (float("inf"), 0.0)  # first start, last end, Unix time

    def __post_init__(self) -> None:
        self._values = {name: array("f") for name in METRICS if name != "itl"}
        self._gaps = np.zeros(_BINS, dtype=np.int64)
        self._gap_sum = 0.0
        self._gap_max = 0.0
        self._short = 0

    def add(self, record: Record) -> None:
        """Take one request."""
        begin, end = self.seconds
        self.seconds = (
            min(begin, record.started),
            max(end, record.started + record.ended),
        )
        self.late += record.sent > 0.01
        if record.error is not None:
            self.failed += 1
        elif record.cut:
            self.cut += 1
        elif record.cancelled:
            self.cancelled += 1
        if record.error is None:
            self.tokens += record.tokens
        if record.complete:
            self._take(record)

    def _take(self, record: Record) -> None:
        self.complete += 1
        self.good += self.slo.kept_by(record)
        self.counted += record.output_tokens is not None
        figures = {
            "ttft": record.ttft_ms,
            "answer": record.answer_ms,
            "tpot": record.tpot_ms,
            "e2e": record.e2e_ms,
            "tokens_per_second": record.tokens_per_second,
            "output_tokens": float(record.tokens),
        }
        for name, value in figures.items():
            if value is not None:
                self._values[name].append(value)
        if len(record.arrivals) > 1:
            gaps = np.diff(record.arrivals) * 1000
            places = np.log(np.maximum(gaps, _LEAST_MS) / _LEAST_MS) / np.log(_STEP)
            places = np.minimum(places.astype(np.int64), _BINS - 1)
            self._gaps += np.bincount(places, minlength=_BINS)
            self._gap_sum += float(gaps.sum())
            self._gap_max = max(self._gap_max, float(gaps.max()))
            self._short += int((gaps < SHORT_GAP_MS).sum())

    @property
    def short_gaps(self) -> float:
        """Share of chunks within a millisecond of the last."""
        total = int(self._gaps.sum())
        return self._short / total if total else 0.0

    @property
    def elapsed(self) -> float:
        """Seconds from the first request's start to the last one's end."""
        return max(0.0, self.seconds[1] - self.seconds[0])

    def percentile(self, name: str, percent: float) -> float | None:
        """A percentile of a metric, None without data; of gaps within 1 %."""
        if name == "itl":
            return self._gap_percentile(percent)
        values = self._values[name]
        return float(np.percentile(_view(values), percent)) if values else None

    def _gap_percentile(self, percent: float) -> float | None:
        total = int(self._gaps.sum())
        if not total:
            return None
        place = int(np.searchsorted(np.cumsum(self._gaps), percent / 100 * total))
        return min(float(_LEAST_MS * _STEP ** (place + 0.5)), self._gap_max)

    def rows(self) -> list[dict[str, str]]:
        """A row of `COLUMNS` for each metric that has values."""
        found = []
        for name, (title, unit) in METRICS.items():
            values = self._values.get(name)
            if name == "itl":
                count, most = int(self._gaps.sum()), self._gap_max
                mean = self._gap_sum / count if count else 0.0
            else:
                assert values is not None
                count = len(values)
                mean = float(_view(values).mean()) if count else 0.0
                most = float(_view(values).max()) if count else 0.0
            if count:
                points = (self.percentile(name, p) or 0.0 for p in (50, 95, 99))
                numbers = (f"{value:.1f}" for value in (mean, *points, most))
                found.append(dict(zip(COLUMNS, (title, unit, str(count), *numbers), strict=True)))
        return found

    def lines(self) -> list[str]:
        """What else there is to say, one fact a line."""
        said = [
            f"{self.complete} answered, {self.failed} failed, {self.cut} cut by the end, "
            f"{self.cancelled} cancelled by their users"
        ]
        if self.elapsed > 0:
            said.append(f"{self.tokens / self.elapsed:.1f} output tokens/s in all")
        if self.complete:
            if self.counted < self.complete:
                share = "no" if not self.counted else "not every"
                said.append(f"{share} answer had the server's count: chunks stand for tokens there")
            if self.slo != Slo():
                rate = self.good / self.elapsed if self.elapsed > 0 else 0.0
                said.append(
                    f"goodput: {self.good} of {self.complete + self.failed} within the limits, "
                    f"{rate:.2f} requests/s"
                )
        if self.late:
            said.append(f"{self.late} requests left late: more users would have sent them in time")
        return said


def _view(values: array[float]) -> NDArray[np.float32]:
    return np.frombuffer(values, dtype=np.float32)
