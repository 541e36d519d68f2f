"""Latency and throughput of streamed answers; pure arithmetic on arrival times.

A *chunk* is one event that holds output of the model. How many tokens an answer has is what the
server counts; a chunk may hold several, and a token may come without one.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

SHORT_GAP_MS = 1.0  # chunks that come closer than this lay ready in a buffer somewhere


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Record(_Frozen):
    """One request. ``started`` is Unix time in seconds; other times are seconds after it.

    In an open loop ``started`` is when the request was due, and ``sent`` how much later it left.
    ``arrivals``: a time for each chunk; ``counts``: the server's count of tokens at each, where it
    says it. ``answer``: the first chunk after the thinking. ``finished``: the last event of the
    answer. ``ended``: the end of the stream. ``opened``: a connection was opened for it.
    ``num_bytes``: of the body.

    ``cut`` means that the test ended while the answer was still arriving, ``cancelled`` that its
    user went away as the workload says: neither a success nor an error. ``output_tokens`` is None
    where the server has not said it.
    """

    kind: str
    started: float
    arrivals: tuple[float, ...]
    ended: float
    prompt_tokens: int | None = None
    output_tokens: int | None = None
    error: str | None = None
    cut: bool = False
    cancelled: bool = False
    index: int = 0
    turn: int = 0
    max_tokens: int | None = None
    sent: float = 0.0
    counts: tuple[int, ...] = ()
    answer: float | None = None
    finished: float | None = None
    finish_reason: str | None = None
    status: int | None = None
    retry_after: float | None = None
    opened: bool = False
    num_bytes: int = 0

    @property
    def complete(self) -> bool:
        """Whether the whole answer arrived."""
        return self.error is None and not self.cut and not self.cancelled

    @property
    def tokens(self) -> int:
        """Output tokens: the server's count, else the number of chunks."""
        return len(self.arrivals) if self.output_tokens is None else self.output_tokens

    @property
    def ttft_ms(self) -> float | None:
        """Milliseconds from sending the request to the first chunk."""
        return self.arrivals[0] * 1000 if self.arrivals else None

    @property
    def answer_ms(self) -> float | None:
        """Milliseconds from sending the request to the first chunk that is not thinking."""
        return None if self.answer is None else self.answer * 1000

    @property
    def decode_tokens(self) -> int:
        """Tokens after those of the first chunk."""
        return max(0, self.tokens - (self.counts[0] if self.counts else 1))

    @property
    def decode_seconds(self) -> float:
        """From the first chunk to the end of the answer."""
        last = self.arrivals[-1] if self.arrivals else 0.0
        return max(last, self.finished or 0.0) - self.arrivals[0] if self.arrivals else 0.0

    @property
    def tpot_ms(self) -> float | None:
        """Milliseconds per output token after the first; None for answers of one token."""
        tokens = self.decode_tokens
        return self.decode_seconds / tokens * 1000 if tokens else None

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
    """Median, 95th and 99th percentile, linearly interpolated; older files lack the last.

    ``p50_ends`` and ``p95_ends``: their 95 % intervals; None where values are too few, or many of
    one request.
    """

    p50: float
    p95: float
    p99: float | None = None
    p50_ends: tuple[float, float] | None = None
    p95_ends: tuple[float, float] | None = None


class Slo(_Frozen):
    """Upper bounds in milliseconds; a request that keeps all of them is good. None: no bound."""

    ttft_ms: float | None = None
    tpot_ms: float | None = None
    e2e_ms: float | None = None

    def kept_by(self, record: Record) -> bool:
        """Whether a request was answered within the bounds."""
        if not record.complete:
            return False
        pairs = (
            (self.ttft_ms, record.ttft_ms),
            (self.tpot_ms, record.tpot_ms),
            (self.e2e_ms, record.e2e_ms),
        )
        return all(limit is None or value is None or value <= limit for limit, value in pairs)


TokenSource = Literal["usage", "chunks", "both"]


class Summary(_Frozen):
    """One measurement. Latencies in milliseconds, None without data.

    ``seconds`` runs from the first request's start to the last one's end. Throughput counts all
    tokens that arrived in it; latencies and lengths are those of complete requests. ``tokens_from``
    says who counted the tokens: the server, or the chunks that arrived did.
    ``prefill_tokens_per_second``: prompt tokens per second of time to first token;
    ``decode_tokens_per_second``: output tokens per second and user after it.
    ``late``: requests of an open loop that left more than 10 ms after they were due.
    ``device_bytes``: the most that accelerators held, all together; ``joules``: what they took.
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
    cancelled: int = 0
    late: int = 0
    output_tokens: int | None = None
    tpot_ms: Quantiles | None = None
    answer_ms: Quantiles | None = None
    prefill_tokens_per_second: float | None = None
    decode_tokens_per_second: float | None = None
    tokens_from: TokenSource | None = None
    short_gaps: float | None = None
    goodput: float | None = None
    device_bytes: int | None = None
    joules: float | None = None

    @property
    def joules_per_token(self) -> float | None:
        """Energy of all accelerators for each output token; what they take idle is in it."""
        tokens = self.output_tokens_per_second * self.seconds
        return self.joules / tokens if self.joules is not None and tokens else None


def quantiles(values: Iterable[float], *, ends: bool = True) -> Quantiles | None:
    """Percentiles of ``values``; None if there are none.

    :param ends: with intervals; not for values of which a request has many, as these are alike
    """
    array = np.sort(np.fromiter(values, dtype=np.float64))
    if not array.size:
        return None
    p50, p95, p99 = (float(value) for value in np.percentile(array, [50, 95, 99]))
    low, high = (_ends(array, share) if ends else None for share in (0.5, 0.95))
    return Quantiles(p50=p50, p95=p95, p99=p99, p50_ends=low, p95_ends=high)


_FEWEST = 5  # of n p (1 - p), for the binomial distribution to be nearly normal


def _ends(values: NDArray[np.float64], share: float) -> tuple[float, float] | None:
    """The order statistics between which a quantile lies in 95 % of cases, whatever they are of."""
    middle = share * values.size
    if middle * (1 - share) < _FEWEST:
        return None
    far = 1.959964 * math.sqrt(middle * (1 - share))
    ranks = (math.floor(middle - far), math.ceil(middle + far))  # from 0
    low, high = (float(values[min(max(rank, 0), values.size - 1)]) for rank in ranks)
    return low, high


def known(values: Iterable[float | None]) -> Iterable[float]:
    """The values that are there."""
    return (value for value in values if value is not None)


def token_counts(records: Sequence[Record]) -> list[float]:
    """Tokens of each request that counts for throughput: all but failed ones.

    An answer that was cut before its count came has as many as its chunks hold elsewhere.
    """
    told = [r for r in records if r.complete and r.output_tokens is not None and r.arrivals]
    chunks = sum(len(r.arrivals) for r in told)
    per_chunk = sum(r.tokens for r in told) / chunks if chunks else 1.0
    return [
        len(r.arrivals) * per_chunk if r.output_tokens is None and not r.complete else r.tokens
        for r in records
        if r.error is None
    ]


def token_source(records: Sequence[Record]) -> TokenSource | None:
    """Who counted the tokens of the complete answers."""
    told = {r.output_tokens is not None for r in records if r.complete}
    if len(told) > 1:
        return "both"
    return None if not told else "usage" if told == {True} else "chunks"


def _rate(amount: float, seconds: float) -> float | None:
    return amount / seconds if amount and seconds > 0 else None


def summarise(records: Sequence[Record], users: int, slo: Slo | None = None) -> Summary:
    """Reduce one measurement's records to a ``Summary``."""
    complete = [record for record in records if record.complete]
    failed = [record for record in records if record.error is not None]
    cancelled = sum(record.cancelled for record in records)
    began = min((record.started for record in records), default=0.0)
    seconds = max((record.started + record.ended for record in records), default=began) - began
    tokens = sum(token_counts(records))
    gaps = [gap for r in complete for gap in r.itl_ms]
    prompted = [r for r in complete if r.prompt_tokens and r.ttft_ms]
    good = sum(slo.kept_by(record) for record in complete) if slo else None
    return Summary(
        users=users,
        seconds=seconds,
        requests=len(complete),
        errors=len(failed),
        cut=len(records) - len(complete) - len(failed) - cancelled,
        cancelled=cancelled,
        late=sum(record.sent > 0.01 for record in records),
        output_tokens=sum(record.tokens for record in complete),
        output_tokens_per_second=tokens / seconds if seconds > 0 else 0.0,
        requests_per_second=len(complete) / seconds if seconds > 0 else 0.0,
        output_tokens_mean=float(np.mean([r.tokens for r in complete])) if complete else None,
        ttft_ms=quantiles(known(r.ttft_ms for r in complete)),
        answer_ms=quantiles(known(r.answer_ms for r in complete)),
        tpot_ms=quantiles(known(r.tpot_ms for r in complete)),
        itl_ms=quantiles(gaps, ends=False),
        e2e_ms=quantiles(r.e2e_ms for r in complete),
        prefill_tokens_per_second=_rate(
            sum(r.prompt_tokens or 0 for r in prompted), sum(r.arrivals[0] for r in prompted)
        ),
        decode_tokens_per_second=_rate(
            sum(r.decode_tokens for r in complete), sum(r.decode_seconds for r in complete)
        ),
        tokens_from=token_source(records),
        short_gaps=sum(gap < SHORT_GAP_MS for gap in gaps) / len(gaps) if gaps else None,
        goodput=None if good is None else good / seconds if seconds > 0 else 0.0,
        first_error=failed[0].error if failed else None,
    )
