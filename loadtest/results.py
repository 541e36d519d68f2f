"""What a comparison found: frozen models that survive JSON."""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue

from loadtest.answers import Answers
from loadtest.endpoint import KEY_VARIABLE
from loadtest.health import Health
from loadtest.metrics import Quantiles, Summary
from loadtest.server_metrics import ServerUse
from vllm_moe_prune.errors import PruneError
from vllm_moe_prune.reading import MissingFileError, read_json, validated

PAGE_MARK = b"<title>Serving compared</title>"
PAGE_TITLE = "# Serving, candidate against base"
BASE = "base"
SideName = str  # "base", "candidate" or the name of one of several configurations


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Settings(_Frozen):
    """How all sides were loaded.

    A measurement ends when ``requests`` are answered (None: four for each user, at least 16), the
    same ones on every side. With ``duration`` (seconds) no more are sent after that time instead,
    and those under way are answered. ``processes``: of the client; None: one for 64 users.
    ``client_lag_ms``: how late (p95) the client's own loop may be; 0: it is not judged.
    ``engine``: ``vllm-bench`` has every measurement repeated by `vllm bench serve`. ``records``:
    the form of the files of requests.
    """

    users: tuple[int, ...] = (1, 8, 32)
    rounds: int = 3
    duration: float | None = None
    requests: int | None = None
    endpoint: Literal["chat", "completion"] = "chat"
    workload: str | None = None
    max_tokens: int | None = None
    temperature: float = 0.0
    ignore_eos: bool = True
    natural_requests: int = 16
    seed: int = 0
    request_timeout: float = 600.0
    processes: int | None = None
    client_lag_ms: float = 100.0
    insecure: bool = False
    ca: str | None = None
    api_key_env: str = KEY_VARIABLE
    engine: Literal["locust", "vllm-bench"] = "locust"
    records: Literal["jsonl", "parquet"] = "jsonl"

    def requests_at(self, users: int) -> int | None:
        """How many requests a measurement has; None if the clock ends it."""
        if self.requests is not None or self.duration is not None:
            return self.requests
        return max(16, 4 * users)


class Side(_Frozen):
    """One of the things compared: how it was served. ``digest`` says which map, where one is."""

    name: SideName
    target: str
    load_format: str | None = None
    loader_extra_config: dict[str, JsonValue] | None = None
    arguments: tuple[str, ...] = ()


class Lifetime(_Frozen):
    """One server from start to end, measured at every number of users.

    ``startup_seconds`` and ``peak_bytes`` (host memory) are None for a server that ran already.
    ``natural_output_tokens`` is the mean answer length where the model itself decides when to end.
    ``servers``: what the server's ``/metrics`` said at each point; None where there are none.
    ``second``: what `vllm bench serve` measured at each point, where it was asked. ``gone``: in the
    end the server answered no more; numbers of users may be missing.
    """

    side: SideName
    round: int
    model: str
    version: str | None
    startup_seconds: float | None
    peak_bytes: int | None
    natural_output_tokens: float | None
    points: tuple[Summary, ...]
    clients: tuple[Health, ...] = ()
    servers: tuple[ServerUse | None, ...] = ()
    second: tuple[Summary, ...] = ()
    warnings: tuple[str, ...] = ()
    gone: bool = False


class Ratio(_Frozen):
    """Candidate divided by base, of one metric: a value for each round, and their median.

    ``low`` to ``high`` is its 95 % interval (`loadtest.bootstrap`). ``users`` is None for what does
    not depend on them. ``higher_is_better`` says how to read it.
    """

    metric: str
    users: int | None
    per_round: tuple[float, ...]
    median: float
    higher_is_better: bool | None
    candidate: SideName = "candidate"
    low: float | None = None
    high: float | None = None


class CompareResult(_Frozen):
    """Everything that a comparison measured, and its ratios.

    ``verdict``: why it failed, a line each; empty if it did not. ``machine`` and ``versions`` are
    those of the client, which is the servers' too where they were started from here. ``second``:
    of each server (``candidate`` is its name), what `vllm bench serve` measured by what locust did.
    ``answers``: what each side says where its model decides when to end.
    """

    schema_version: Literal[1, 2] = 2
    base: str
    candidate: str
    settings: Settings
    server_arguments: tuple[str, ...]
    created: str
    lifetimes: tuple[Lifetime, ...]
    ratios: tuple[Ratio, ...]
    sides: tuple[Side, ...] = ()
    machine: dict[str, JsonValue] = Field(default_factory=dict)
    versions: dict[str, str] = Field(default_factory=dict)
    verdict: tuple[str, ...] = ()
    second: tuple[Ratio, ...] = ()
    answers: tuple[Answers, ...] = ()

    @property
    def candidates(self) -> tuple[SideName, ...]:
        """All sides but the base, in order."""
        return tuple(dict.fromkeys(life.side for life in self.lifetimes if life.side != BASE))

    def ratio(
        self, metric: str, users: int | None = None, candidate: SideName | None = None
    ) -> Ratio | None:
        """The ratio of ``metric`` at ``users`` (of the first candidate); None if not measured."""
        found = (
            r
            for r in self.ratios
            if r.metric == metric and r.users == users and candidate in {None, r.candidate}
        )
        return next(found, None)

    def value(
        self, side: SideName, metric: str, users: int, *, second: bool = False
    ) -> float | None:
        """Median over the rounds of one side's metric at ``users``; of the ``second`` opinion's."""
        values = [
            POINT_METRICS[metric][0](point)
            for life in self.lifetimes
            if life.side == side
            for point in (life.second if second else life.points)
            if point.users == users
        ]
        known = [value for value in values if value is not None]
        return median(known) if known else None

    def told(self, side: SideName, metric: str, users: int) -> float | None:
        """Median over the rounds of what one side's server said of itself at ``users``."""
        values = [
            getattr(use, metric)
            for life in self.lifetimes
            if life.side == side
            for point, use in zip(life.points, life.servers, strict=False)
            if point.users == users and use is not None
        ]
        known = [value for value in values if value is not None]
        return median(known) if known else None

    @property
    def errors(self) -> int:
        """Failed requests of all sides together."""
        return sum(point.errors for life in self.lifetimes for point in life.points)

    def failed(self, side: SideName, users: int) -> tuple[int, int]:
        """Failed requests of one side at ``users``, and all that ended."""
        points = [
            point
            for life in self.lifetimes
            if life.side == side
            for point in life.points
            if point.users == users
        ]
        errors = sum(point.errors for point in points)
        return errors, errors + sum(point.requests for point in points)


def _quantile(name: str, field: str) -> Callable[[Summary], float | None]:
    def read(point: Summary) -> float | None:
        found: Quantiles | None = getattr(point, name)
        return None if found is None else float(getattr(found, field))

    return read


# Metric -> how to read it, and whether more is better (None: neither).
POINT_METRICS: dict[str, tuple[Callable[[Summary], float | None], bool | None]] = {
    "output_tokens_per_second": (lambda point: point.output_tokens_per_second, True),
    "prefill_tokens_per_second": (lambda point: point.prefill_tokens_per_second, True),
    "decode_tokens_per_second": (lambda point: point.decode_tokens_per_second, True),
    "ttft_ms_p50": (_quantile("ttft_ms", "p50"), False),
    "ttft_ms_p95": (_quantile("ttft_ms", "p95"), False),
    "answer_ms_p50": (_quantile("answer_ms", "p50"), False),
    "tpot_ms_p50": (_quantile("tpot_ms", "p50"), False),
    "tpot_ms_p95": (_quantile("tpot_ms", "p95"), False),
    "itl_ms_p50": (_quantile("itl_ms", "p50"), False),
    "itl_ms_p95": (_quantile("itl_ms", "p95"), False),
    "e2e_ms_p50": (_quantile("e2e_ms", "p50"), False),
    "e2e_ms_p95": (_quantile("e2e_ms", "p95"), False),
    "output_tokens_mean": (lambda point: point.output_tokens_mean, None),
    "joules_per_token": (lambda point: point.joules_per_token, False),
    "device_bytes": (lambda point: point.device_bytes, False),
}
LIFETIME_METRICS: dict[str, tuple[Callable[[Lifetime], float | None], bool | None]] = {
    "startup_seconds": (lambda life: life.startup_seconds, False),
    "peak_bytes": (lambda life: life.peak_bytes, False),
    "natural_output_tokens": (lambda life: life.natural_output_tokens, None),
}


def load_result(path: Path) -> CompareResult:
    """Read a compare.json, also an older one.

    :raises PruneError: one line that names the file
    """
    try:
        return validated(read_json(path), CompareResult, f"{path} is no comparison")
    except MissingFileError as error:
        raise PruneError(f"no comparison at {path}", hint="was it run?") from error


def write_atomic(path: Path, text: str) -> None:
    """Write ``text`` so that ``path`` is either whole or as it was."""
    short = os.fsencode(path.name)[:200].decode(errors="ignore")
    partial = path.with_name(f".{short}.{secrets.token_hex(8)}.tmp")
    try:
        with partial.open("x", encoding="utf-8") as stream:
            stream.write(text)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
