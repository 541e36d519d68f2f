"""What other commands measured about the same checkpoint, read from their JSON files.

The models are lenient: they name what the report shows and ignore the rest, so that a newer
`loadtest.compare` or `vmprune check` does not break an older report.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from statistics import median
from typing import Any, TypeVar

from pydantic import AliasChoices, BaseModel, ConfigDict, Field, JsonValue

from vllm_moe_prune.errors import PruneError
from vllm_moe_prune.reading import MissingFileError, read_object, validated

SERVING_FILE = "serving.json"
CHECK_FILE = "check.json"


class _Lenient(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


class Ratio(_Lenient):
    """Pruned divided by base, of one metric; ``users`` is None for what depends on none."""

    metric: str
    users: int | None = None
    per_round: tuple[float, ...] = ()
    median: float
    higher_is_better: bool | None = None


class Serving(_Lenient):
    """The `compare.json` of `python -m loadtest.compare`."""

    base: str = ""
    candidate: str = ""
    created: str = ""
    settings: dict[str, JsonValue] = Field(default_factory=dict)
    server_arguments: tuple[str, ...] = ()
    lifetimes: tuple[dict[str, Any], ...] = ()
    ratios: tuple[Ratio, ...]

    def value(self, side: str, metric: str, users: int | None) -> float | None:
        """Return the median over one side's rounds of a metric, if it was measured."""
        lives = [life for life in self.lifetimes if life.get("side") == side]
        if users is None:
            found = [life.get(metric) for life in lives]
        else:
            points = [point for life in lives for point in life.get("points", ())]
            found = [_read(point, metric) for point in points if point.get("users") == users]
        numbers = [float(value) for value in found if isinstance(value, int | float)]
        return median(numbers) if numbers else None

    def ratio(self, metric: str, users: int | None) -> Ratio | None:
        """Return the ratio of a metric at a number of users, if it was measured."""
        found = (r for r in self.ratios if (r.metric, r.users) == (metric, users))
        return next(found, None)

    @property
    def usual_users(self) -> int | None:
        """Return the number of users to quote: 8 if it was measured, else the largest."""
        users = {ratio.users for ratio in self.ratios if ratio.users is not None}
        return 8 if 8 in users else max(users, default=None)

    @property
    def errors(self) -> int:
        """Return the failed requests of both sides together."""
        points = (point for life in self.lifetimes for point in life.get("points", ()))
        return sum(int(point.get("errors") or 0) for point in points)


class CheckItem(_Lenient):
    """One named check, what it measured and what it allows."""

    name: str
    ok: bool
    value: JsonValue = Field(default=None, validation_alias=AliasChoices("value", "measure"))
    limit: JsonValue = None
    detail: JsonValue = None


class Check(_Lenient):
    """What `vmprune check --json` prints."""

    ok: bool | None = None
    checks: tuple[CheckItem, ...] = ()

    @property
    def passed(self) -> bool:
        """Return whether all of it is well."""
        return self.ok is not False and all(item.ok for item in self.checks)


_Model = TypeVar("_Model", bound=BaseModel)


def parse(model: type[_Model], fields: Mapping[str, Any] | None, name: str) -> _Model | None:
    """Validate a file's fields; None stays None.

    :raises PruneError: naming the file and the field that does not fit
    """
    if fields is None:
        return None
    return validated(fields, model, name)


def read_optional(file: Path) -> Mapping[str, Any] | None:
    """Return a JSON object, or None if there is no such file.

    :raises PruneError: if it is there but damaged
    """
    try:
        return read_object(file)
    except MissingFileError:
        return None
    except PruneError as error:
        raise PruneError(error.message, hint="make it again, or delete it") from None


def _read(point: Mapping[str, Any], metric: str) -> Any:
    """Read `ttft_ms_p50` from ``{"ttft_ms": {"p50": ...}}``, other metrics as they are named."""
    name, _, quantile = metric.rpartition("_")
    inner = point.get(name)
    if quantile in {"p50", "p95"} and isinstance(inner, dict):
        return inner.get(quantile)
    return point.get(metric)
