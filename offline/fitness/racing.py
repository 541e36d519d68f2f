"""Racing: giving up on a candidate as soon as the items seen make it hopeless. Pure statistics."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, field_validator

Values = Mapping[str, Sequence[float]]  # task name -> value of each item, in the split's order
_ROUNDING = 1e-9


class RacingSettings(BaseModel):
    """When a candidate is looked at, and how sure one must be to drop it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    looks: tuple[float, ...] = Field(
        default=(0.125, 0.25, 0.5), description="shares of the items after which one looks"
    )
    alpha: float = Field(
        default=0.05, gt=0, lt=0.5, description="chance to drop a candidate that was good enough"
    )
    slack: float = Field(
        default=0.03, ge=0, description="good enough is this much below the best, at most"
    )
    min_items: int = Field(
        default=16, ge=2, description="items of every task to see before a candidate can be dropped"
    )

    @field_validator("looks")
    @classmethod
    def _rise(cls, looks: tuple[float, ...]) -> tuple[float, ...]:
        if list(looks) != sorted(set(looks)) or not all(0 < look < 1 for look in looks):
            raise ValueError("looks must be shares between 0 and 1 that rise")
        return looks


@dataclass(frozen=True, slots=True)
class Race:
    """The rule by which candidates of one generation are dropped against one reference.

    A candidate is good enough if its fitness on all items is at least ``fitness - slack``. The
    guard of an objective only ever lowers a fitness, so a candidate that is good enough also has
    a weighted mean of its item values of at least that; the test is on this mean, and asks for
    the difference to the reference on the same items (paired): it must be shown to lie below
    floor = fitness - slack - (the reference's own weighted mean).

    The order of a split is that of a hash, so the n items seen of a task's N are a simple random
    sample without replacement. With d_i the candidate's value less the reference's on item i, and
    u = max |d_i| an imagined item in the candidate's favour, the estimate of a task's mean
    difference and the square of its standard error are (s^2 the sample variance with u)

        m_t = (sum_i d_i + u) / (n + 1),    e_t^2 = s^2 / (n + 1) * (1 - n / N)

    where the last factor is the finite-population correction (Cochran, Sampling Techniques, 3rd
    ed. 1977, section 2.6). A task that is seen whole has m_t exact and e_t = 0. Tasks are strata
    (Cochran, chapter 5): m = sum_t s_t m_t, e^2 = sum_t s_t^2 e_t^2, s_t the tasks' shares. The
    candidate is dropped if

        m + q e < floor,    q = quantile 1 - alpha / looks of Student's t,

    with the degrees of freedom of the smallest sample, n - 1 (no more than Welch-Satterthwaite's).
    alpha is split evenly over the looks (Bonferroni), so the chance that any of them drops a
    candidate that is good enough is at most alpha as far as Student's t holds. It holds with room:
    for items that are right or wrong, without the imagined item the exact error of a look (by
    enumeration of the hypergeometric) reaches 1.4 times its share of alpha, where few items differ
    and the sample variance is too small by luck; with it, it stays below its share. The imagined
    item also settles the case of no variance: no candidate is dropped for losing by equal amounts
    on a handful of items. Tests hold both claims.

    Values in 0..1 can also be hopeless with certainty: when all unseen items could not lift the
    mean to ``fitness - slack``. This makes no errors and takes nothing from alpha.

    The rate is per candidate and over the order of the items, which all candidates share. Whether
    a candidate is dropped depends on its own values and on the reference, on nothing else.

    :param reference: item values of the best complete candidate when the generation began
    :param fitness: that candidate's fitness, at most its weighted mean
    :param shares: task name -> share of the weights; they sum to 1
    :param bounded: whether item values lie in 0..1
    """

    settings: RacingSettings
    reference: Values
    fitness: float
    shares: Mapping[str, float]
    bounded: bool

    def ends(self) -> list[dict[str, int]]:
        """Return how many items of each task have been seen after each block; last comes all."""
        sizes = {name: len(self.reference[name]) for name in self.shares}
        ends: list[dict[str, int]] = []
        for share in (*self.settings.looks, 1.0):
            at_least = self.settings.min_items
            end = {
                name: min(size, max(at_least, math.ceil(share * size - _ROUNDING)))
                for name, size in sizes.items()
            }
            if end not in ends:
                ends.append(end)
        return ends

    def is_hopeless(self, values: Values) -> bool:
        """Whether a candidate with these values on the first items of each task can be dropped.

        :param values: as many of each task as one of `ends` says
        """
        if self.bounded and self._best_case(values) < self._enough - _ROUNDING:
            return True
        looks = len(self.ends()) - 1
        sampled = [len(values[n]) for n in self.shares if len(values[n]) < len(self.reference[n])]
        if not sampled or min(sampled) < 2:
            return False
        mean, square = 0.0, 0.0
        for name, share in self.shares.items():
            task_mean, task_square = self._difference(name, values[name])
            mean += share * task_mean
            square += share**2 * task_square
        quantile = _student(1 - self.settings.alpha / looks, min(sampled) - 1)
        floor = self._enough - self._mean_of(self.reference)
        return mean + quantile * math.sqrt(square) < floor - _ROUNDING

    def digest(self) -> str:
        """Return what the race's decisions depend on, as a hash."""
        parts = [
            self.settings.model_dump(mode="json"),
            self.fitness,
            {name: list(self.reference[name]) for name in self.shares},
        ]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]

    @property
    def _enough(self) -> float:
        return self.fitness - self.settings.slack

    def _mean_of(self, values: Values) -> float:
        return math.fsum(s * math.fsum(values[n]) / len(values[n]) for n, s in self.shares.items())

    def _best_case(self, values: Values) -> float:
        """Return the weighted mean if every unseen item had the value 1."""
        best = 0.0
        for name, share in self.shares.items():
            size = len(self.reference[name])
            best += share * (math.fsum(values[name]) + size - len(values[name])) / size
        return best

    def _difference(self, name: str, values: Sequence[float]) -> tuple[float, float]:
        """Return the mean difference to the reference on a task and its squared error."""
        size, count = len(self.reference[name]), len(values)
        differences = np.asarray(values) - np.asarray(self.reference[name][:count])
        if count == size:
            return float(differences.mean()), 0.0
        with_imagined = np.append(differences, np.abs(differences).max())
        variance = float(with_imagined.var(ddof=1))
        return float(with_imagined.mean()), variance / (count + 1) * (1 - count / size)


def _student(probability: float, freedom: int) -> float:
    from scipy.special import stdtrit  # scipy.stats takes seconds to import

    return float(stdtrit(freedom, probability))
