"""How the load runs in time: users who wait for their answers, or requests that come by a clock."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator


class _Line(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Stage(_Line):
    """A stretch of time. ``rate`` (requests per second, open loop) or ``users`` (closed loop) at
    its begin; ``to`` is where it has come at its end, so that it is a ramp."""

    seconds: float = Field(gt=0)
    rate: float | None = Field(default=None, ge=0)
    users: int | None = Field(default=None, ge=0)
    to: float | None = Field(default=None, ge=0)

    @property
    def ends_at(self) -> float:
        """Rate or users at the end of the stage."""
        begin = self.rate if self.rate is not None else float(self.users or 0)
        return begin if self.to is None else self.to


class Load(_Line):
    """``closed``: each user waits for the answer before the next request. ``constant`` and
    ``poisson``: requests come at the rate of the stages, whether or not others are answered."""

    arrivals: Literal["closed", "constant", "poisson"] = "closed"
    stages: tuple[Stage, ...] = ()

    @model_validator(mode="after")
    def _fits(self) -> Load:
        wanted = "users" if self.arrivals == "closed" else "rate"
        for number, stage in enumerate(self.stages, 1):
            given = {name for name in ("users", "rate") if getattr(stage, name) is not None}
            if given != {wanted}:
                raise ValueError(f"stage {number}: {self.arrivals} arrivals have {wanted!r}")
        if self.open and not self.stages:
            raise ValueError(f"{self.arrivals} arrivals need stages with a rate")
        return self

    @property
    def open(self) -> bool:
        """Whether requests come by the clock."""
        return self.arrivals != "closed"

    @property
    def seconds(self) -> float:
        """How long all stages take."""
        return sum(stage.seconds for stage in self.stages)

    def users_at(self, second: float) -> int | None:
        """Users of a closed loop at a time after the start; None after the last stage."""
        for stage in self.stages:
            if second < stage.seconds:
                begin, share = stage.users or 0, second / stage.seconds
                return round(begin + (stage.ends_at - begin) * share)
            second -= stage.seconds
        return None

    def due(self, seed: int) -> Iterator[float]:
        """Seconds after the start at which each request of an open loop is due.

        A Poisson process of a changing rate is one of rate 1 on the clock that counts expected
        requests; constant arrivals are the whole numbers on that clock.
        """
        rng = random.Random(seed)
        expected = rng.expovariate(1) if self.arrivals == "poisson" else 0.0
        begin, passed = 0.0, 0.0
        for stage in self.stages:
            rate, end = stage.rate or 0.0, stage.ends_at
            total = (rate + end) / 2 * stage.seconds
            while expected - passed < total:
                yield begin + _when(expected - passed, rate, (end - rate) / stage.seconds)
                expected += rng.expovariate(1) if self.arrivals == "poisson" else 1.0
            begin, passed = begin + stage.seconds, passed + total


def _when(amount: float, rate: float, slope: float) -> float:
    """The time t at which ``rate t + slope t^2 / 2`` is ``amount``."""
    if amount == 0:
        return 0.0
    if slope == 0:
        return amount / rate
    return 2 * amount / (rate + math.sqrt(max(0.0, rate * rate + 2 * slope * amount)))


def steady(
    rate: float, seconds: float, arrivals: Literal["constant", "poisson"] = "poisson"
) -> Load:
    """An open loop at one rate."""
    return Load(arrivals=arrivals, stages=(Stage(seconds=seconds, rate=rate),))
