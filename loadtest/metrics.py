"""Latency and throughput of streamed answers; pure arithmetic on arrival times.

A *chunk* is one event with visible text. Servers send one token per chunk unless they fall behind
the stream, so gaps between chunks are inter-token latencies; token counts are always the server's.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
from pydantic import BaseModel, ConfigDict

from vllm_moe_prune.errors import PruneError


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Record(_Frozen):
    """One request. ``started`` is Unix time in seconds; other times are seconds after it.

    ``cut`` means that the test ended while the answer was still arriving: neither a success nor
    an error. ``output_tokens`` is None where the server has not said it.
    """

    kind: str
    started: float
    arrivals: tuple[float, ...]
    ended: float
    prompt_tokens: int | None = None
    output_tokens: int | None = None
    error: str | None = None
    cut: bool = False

    @property
    def complete(self) -> bool:
        """Whether the whole answer arrived."""
        return self.error is None and not self.cut

    @property
    def tokens(self) -> int:
        """Output tokens: the server's count, else the number of chunks."""
        return len(self.arrivals) if self.output_tokens is None else self.output_tokens

    @property
    def ttft_ms(self) -> float | None:
        """Milliseconds from sending the request to the first chunk."""
        return self.arrivals[0] * 1000 if self.arrivals else None

    @property
    def itl_ms(self) -> list[float]:
        """Milliseconds between successive chunks: one fewer than there are chunks."""
        return [(later - earlier) * 1000 for earlier, later in pairwise(self.arrivals)]

    @property
    def e2e_ms(self) -> float:
        """Milliseconds from sending the request to the end of the answer."""
        return self.ended * 1000

    @property
    def tokens_per_second(self) -> float:
        """Output tokens of this request per second of its end-to-end latency."""
        return self.tokens / self.ended if self.ended > 0 else 0.0


class Quantiles(_Frozen):
    """Median and 95th percentile, linearly interpolated."""

    p50: float
    p95: float


class Summary(_Frozen):
    """One measurement at a fixed number of users. Latencies in milliseconds, None without data.

    ``seconds`` runs from the first request's start to the last one's end. Throughput counts all
    tokens that arrived in it; latencies and lengths are those of complete requests.
    """

    users: int
    seconds: float
    requests: int
    errors: int
    cut: int
    output_tokens_per_second: float
    requests_per_second: float
    output_tokens_mean: float | None
    ttft_ms: Quantiles | None
    itl_ms: Quantiles | None
    e2e_ms: Quantiles | None
    first_error: str | None = None


def quantiles(values: Iterable[float]) -> Quantiles | None:
    """p50 and p95 of ``values``; None if there are none."""
    array = np.fromiter(values, dtype=np.float64)
    if not array.size:
        return None
    p50, p95 = np.percentile(array, [50, 95])
    return Quantiles(p50=float(p50), p95=float(p95))


def summarise(records: Sequence[Record], users: int) -> Summary:
    """Reduce one measurement's records to a ``Summary``."""
    complete = [record for record in records if record.complete]
    failed = [record for record in records if record.error is not None]
    began = min((record.started for record in records), default=0.0)
    seconds = max((record.started + record.ended for record in records), default=began) - began
    tokens = sum(record.tokens for record in records if record.error is None)
    return Summary(
        users=users,
        seconds=seconds,
        requests=len(complete),
        errors=len(failed),
        cut=len(records) - len(complete) - len(failed),
        output_tokens_per_second=tokens / seconds if seconds > 0 else 0.0,
        requests_per_second=len(complete) / seconds if seconds > 0 else 0.0,
        output_tokens_mean=float(np.mean([r.tokens for r in complete])) if complete else None,
        ttft_ms=quantiles(r.ttft_ms for r in complete if r.ttft_ms is not None),
        itl_ms=quantiles(gap for r in complete for gap in r.itl_ms),
        e2e_ms=quantiles(r.e2e_ms for r in complete),
        first_error=failed[0].error if failed else None,
    )


def read_records(path: Path) -> list[Record]:
    """Read the JSONL that the locustfile writes with ``--records``.

    :raises PruneError: if the file is missing
    """
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise PruneError(f"no request records at {path}", hint="was it run?") from error
    return [Record.model_validate_json(line) for line in text.splitlines()]
