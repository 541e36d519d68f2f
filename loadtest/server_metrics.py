"""What the server says of itself while it is loaded: samples of its ``/metrics``.

vLLM's names are read (``vllm:...``); a server without them is asked once and left alone. The lines
that are wanted are picked out before they are parsed: the loop that asks is the one that takes the
times of a test.
"""

from __future__ import annotations

import contextlib
import http.client
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

import gevent  # type: ignore[import-untyped]
from prometheus_client.parser import text_string_to_metric_families
from pydantic import BaseModel, ConfigDict, ValidationError

from loadtest.endpoint import Endpoint
from vllm_moe_prune.errors import PruneError
from vllm_moe_prune.reading import read_text

PERIOD_SECONDS = 1.0
SUFFIX = ".server.jsonl"  # of the file beside the records
# vLLM's name -> ours; values of several engines behind one address are added up.
_NAMES = {
    "vllm:num_requests_running": "running",
    "vllm:num_requests_waiting": "waiting",
    "vllm:kv_cache_usage_perc": "kv_used",
    "vllm:num_preemptions_total": "preemptions",
    "vllm:prefix_cache_queries_total": "prefix_queries",
    "vllm:prefix_cache_hits_total": "prefix_hits",
    "vllm:request_queue_time_seconds_sum": "queue_seconds",
    "vllm:request_prefill_time_seconds_sum": "prefill_seconds",
    "vllm:request_decode_time_seconds_sum": "decode_seconds",
    "vllm:request_decode_time_seconds_count": "decoded",
}
_CACHE, _CACHE_TOKENS = "vllm:cache_config_info", "kv_cache_size_tokens"  # a name and its label


class Sample(BaseModel):
    """A server at one moment; None: it does not say.

    ``at``: seconds since 1970. ``running``, ``waiting``: requests. ``kv_used``: share of the
    KV cache, the mean of the engines; ``kv_tokens``: that it has room for. ``preemptions``, and the
    prompt tokens that were looked for (``prefix_queries``) and found (``prefix_hits``) in the
    prefix cache: since it started. So are the seconds that all requests waited, were prefilled and
    decoded, and how many (``decoded``).
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    at: float
    running: float | None = None
    waiting: float | None = None
    kv_used: float | None = None
    kv_tokens: float | None = None
    preemptions: float | None = None
    prefix_queries: float | None = None
    prefix_hits: float | None = None
    queue_seconds: float | None = None
    prefill_seconds: float | None = None
    decode_seconds: float | None = None
    decoded: float | None = None

    @classmethod
    def read(cls, text: str, at: float) -> Sample | None:
        """Read an answer of ``/metrics``; None if nothing in it is vLLM's.

        :raises ValueError: if its lines are not in Prometheus' format
        """
        wanted = (*_NAMES, _CACHE)
        lines = [line for line in text.splitlines() if line.startswith(wanted)]
        values: dict[str, list[float]] = {}
        for family in text_string_to_metric_families("\n".join([*lines, ""])):
            for sample in family.samples:
                if (name := _NAMES.get(sample.name)) is not None:
                    values.setdefault(name, []).append(sample.value)
                elif (tokens := sample.labels.get(_CACHE_TOKENS, "")).isdigit():
                    values.setdefault("kv_tokens", []).append(float(tokens))
        if not values:
            return None
        sums = {name: sum(found) for name, found in values.items()}
        if "kv_used" in sums:
            sums["kv_used"] /= len(values["kv_used"])
        return cls(at=at, **sums)


class ServerUse(BaseModel):
    """A server over a measurement: the most of each sample, what was counted between the ends.

    ``prefix_hit_share``: of the prompt tokens that were looked for in the prefix cache.
    ``queue_ms``, ``prefill_ms``, ``decode_ms``: of a request in the engine, the mean.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    samples: int
    running: float | None = None
    waiting: float | None = None
    kv_used: float | None = None
    kv_tokens: float | None = None
    preemptions: float | None = None
    prefix_hit_share: float | None = None
    queue_ms: float | None = None
    prefill_ms: float | None = None
    decode_ms: float | None = None

    @classmethod
    def of(cls, samples: Sequence[Sample]) -> ServerUse | None:
        """Return that of samples in their order; None of none."""
        if not samples:
            return None
        first, last = samples[0], samples[-1]
        queries = _between(first.prefix_queries, last.prefix_queries)
        hits = _between(first.prefix_hits, last.prefix_hits)
        number = _between(first.decoded, last.decoded)

        def each(name: str) -> float | None:
            seconds = _between(getattr(first, name), getattr(last, name))
            return 1000 * seconds / number if seconds is not None and number else None

        return cls(
            samples=len(samples),
            running=_most(one.running for one in samples),
            waiting=_most(one.waiting for one in samples),
            kv_used=_most(one.kv_used for one in samples),
            kv_tokens=_most(one.kv_tokens for one in samples),
            preemptions=_between(first.preemptions, last.preemptions),
            prefix_hit_share=hits / queries if hits is not None and queries else None,
            queue_ms=each("queue_seconds"),
            prefill_ms=each("prefill_seconds"),
            decode_ms=each("decode_seconds"),
        )


def _most(values: Iterable[float | None]) -> float | None:
    return max((value for value in values if value is not None), default=None)


def _between(first: float | None, last: float | None) -> float | None:
    # A counter that fell is that of a server which was started again.
    return None if first is None or last is None or last < first else last - first


class ServerWatch:
    """Asks a server every second, and writes a line for each answer.

    :param file: is made with the first answer
    """

    def __init__(self, endpoint: Endpoint, file: Path) -> None:
        self._endpoint, self._file = endpoint, file
        file.unlink(missing_ok=True)
        self._greenlet = gevent.spawn(self._run)

    def _run(self) -> None:
        while self.look():
            gevent.sleep(PERIOD_SECONDS)

    def look(self) -> bool:
        """Take a sample; return whether there is a point in asking again."""
        try:
            sample = Sample.read(self._endpoint.get_text("/metrics"), time.time())
        except (ValueError, http.client.HTTPException):
            return False
        except OSError:
            return True  # busy, or gone for a while
        if sample is None:
            return False
        with self._file.open("a", encoding="utf-8") as stream:
            stream.write(sample.model_dump_json(exclude_none=True) + "\n")
        return True

    def stop(self) -> None:
        """Take the last sample."""
        self._greenlet.kill()
        if self._file.exists():
            self.look()


def read_samples(records: Path) -> list[Sample]:
    """Return the samples beside a file of records; a line that a kill cut short ends them."""
    found: list[Sample] = []
    with contextlib.suppress(PruneError, ValidationError):
        for line in read_text(records.with_suffix(SUFFIX)).splitlines():
            found.append(Sample.model_validate_json(line))
    return found
