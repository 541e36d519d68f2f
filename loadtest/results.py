"""What a comparison found: frozen models that survive JSON, and the ratios between two sides."""

from __future__ import annotations

import json
import os
import re
import secrets
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from statistics import median
from typing import Literal

from pydantic import BaseModel, ConfigDict

from loadtest.metrics import Quantiles, Summary
from vllm_moe_prune.errors import PruneError

SCHEMA_VERSION = 1
PAGE_TITLE = "# Serving, candidate against base"
_ROUND_FILES = re.compile(r"\d+-(base|candidate)(/(server\.log|users-\d+(\.\d+)?\.(jsonl|log)))?")
SideName = Literal["base", "candidate"]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Settings(_Frozen):
    """How both sides were loaded. ``duration`` in seconds; ``requests`` per measurement, if set,
    replaces it.
    """

    users: tuple[int, ...] = (1, 8, 32)
    rounds: int = 2
    duration: float = 20.0
    requests: int | None = None
    endpoint: Literal["chat", "completion"] = "chat"
    workload: str | None = None
    max_tokens: int | None = None
    temperature: float = 0.0
    ignore_eos: bool = True
    natural_requests: int = 16
    seed: int = 0


class Lifetime(_Frozen):
    """One server from start to end, measured at every number of users.

    ``startup_seconds`` and ``peak_bytes`` (host memory) are None for a server that ran already.
    ``natural_output_tokens`` is the mean answer length where the model itself decides when to end.
    """

    side: SideName
    round: int
    model: str
    version: str | None
    startup_seconds: float | None
    peak_bytes: int | None
    natural_output_tokens: float | None
    points: tuple[Summary, ...]


class Ratio(_Frozen):
    """Candidate divided by base, of one metric: a value for each round, and their median.

    ``users`` is None for what does not depend on them. ``higher_is_better`` says how to read it.
    """

    metric: str
    users: int | None
    per_round: tuple[float, ...]
    median: float
    higher_is_better: bool | None


class CompareResult(_Frozen):
    """Everything that a comparison measured, and its ratios."""

    schema_version: Literal[1] = 1
    base: str
    candidate: str
    settings: Settings
    server_arguments: tuple[str, ...]
    created: str
    lifetimes: tuple[Lifetime, ...]
    ratios: tuple[Ratio, ...]

    def ratio(self, metric: str, users: int | None = None) -> Ratio | None:
        """The ratio of ``metric`` at ``users``; None if it was not measured."""
        found = (r for r in self.ratios if r.metric == metric and r.users == users)
        return next(found, None)

    def value(self, side: SideName, metric: str, users: int) -> float | None:
        """Median over the rounds of one side's metric at ``users``."""
        values = [
            POINT_METRICS[metric][0](point)
            for life in self.lifetimes
            if life.side == side
            for point in life.points
            if point.users == users
        ]
        known = [value for value in values if value is not None]
        return median(known) if known else None

    @property
    def errors(self) -> int:
        """Failed requests of both sides together."""
        return sum(point.errors for life in self.lifetimes for point in life.points)


def _quantile(name: str, field: str) -> Callable[[Summary], float | None]:
    def read(point: Summary) -> float | None:
        found: Quantiles | None = getattr(point, name)
        return None if found is None else float(getattr(found, field))

    return read


# Metric -> how to read it, and whether more is better (None: neither).
POINT_METRICS: dict[str, tuple[Callable[[Summary], float | None], bool | None]] = {
    "output_tokens_per_second": (lambda point: point.output_tokens_per_second, True),
    "ttft_ms_p50": (_quantile("ttft_ms", "p50"), False),
    "ttft_ms_p95": (_quantile("ttft_ms", "p95"), False),
    "itl_ms_p50": (_quantile("itl_ms", "p50"), False),
    "itl_ms_p95": (_quantile("itl_ms", "p95"), False),
    "e2e_ms_p50": (_quantile("e2e_ms", "p50"), False),
    "e2e_ms_p95": (_quantile("e2e_ms", "p95"), False),
    "output_tokens_mean": (lambda point: point.output_tokens_mean, None),
}
LIFETIME_METRICS: dict[str, tuple[Callable[[Lifetime], float | None], bool | None]] = {
    "startup_seconds": (lambda life: life.startup_seconds, False),
    "peak_bytes": (lambda life: life.peak_bytes, False),
    "natural_output_tokens": (lambda life: life.natural_output_tokens, None),
}


def ratios(lifetimes: Sequence[Lifetime]) -> tuple[Ratio, ...]:
    """Candidate / base within each round, for every metric that both sides have.

    Two measurements of one round lie minutes apart, two rounds further: what else the machine
    does changes slowly, so a ratio within a round is steadier than a time.
    """
    sides = {(life.side, life.round): life for life in lifetimes}
    rounds = sorted({life.round for life in lifetimes})
    pairs = [(sides[("base", r)], sides[("candidate", r)]) for r in rounds]
    counts = [point.users for point in pairs[0][0].points] if pairs else []
    found = []
    for users in counts:
        points = [(_point(base, users), _point(candidate, users)) for base, candidate in pairs]
        for metric, (read, better) in POINT_METRICS.items():
            found.append(_ratio(metric, users, better, [(read(b), read(c)) for b, c in points]))
    for metric, (look, better) in LIFETIME_METRICS.items():
        found.append(_ratio(metric, None, better, [(look(b), look(c)) for b, c in pairs]))
    return tuple(ratio for ratio in found if ratio is not None)


def _point(life: Lifetime, users: int) -> Summary:
    return next(point for point in life.points if point.users == users)


def _ratio(
    metric: str,
    users: int | None,
    better: bool | None,
    pairs: Iterable[tuple[float | None, float | None]],
) -> Ratio | None:
    values = tuple(c / b for b, c in pairs if b and c is not None)
    if not values:
        return None
    return Ratio(
        metric=metric,
        users=users,
        per_round=values,
        median=median(values),
        higher_is_better=better,
    )


def check_place(out: Path) -> None:
    """Refuse a folder in which a comparison would write over what none has written.

    :raises PruneError: naming the file
    """
    for foreign in _foreign(out):
        raise PruneError(
            f"{foreign} was not written by a comparison and is not replaced",
            hint="choose another --out, or move it away",
        )


def _foreign(out: Path) -> Iterator[Path]:
    page, result, rounds = out / "compare.md", out / "compare.json", out / "rounds"
    if result.exists() and not _is_result(result):
        yield result
    if page.exists() and not page.read_bytes().startswith(PAGE_TITLE.encode()):
        yield page
    if rounds.exists() and not rounds.is_dir():
        yield rounds
    for file in sorted(rounds.rglob("*")):
        if not _ROUND_FILES.fullmatch(file.relative_to(rounds).as_posix()):
            yield file


def _is_result(file: Path) -> bool:
    try:
        fields = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(fields, dict) and {"lifetimes", "ratios", "settings"} <= fields.keys()


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
