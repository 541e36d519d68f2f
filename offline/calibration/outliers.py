"""Counts the outliers of one expert's outputs in one pass: EAO of MC-Suite.

An outlier is an entry outside mean +- 3 standard deviations of its hidden dimension over *all*
tokens of the expert, which is known only at the end. So every entry is kept until there are
FIRST tokens. From then on a band lies around each of the two thresholds as they are estimated so
far: entries well within both thresholds are dropped, entries in a band or beyond are kept with
their dimension, and what is beyond is merely counted as soon as more than FIRST tokens' worth of
entries are kept. Whenever the number of tokens has doubled, the bands are renewed and the kept
entries sorted out again. Bands narrow as 1 / sqrt(tokens), so what is kept grows as sqrt(tokens).
At the end the kept entries are compared with the final thresholds. Where a final threshold left
what the bands covered, the count is a bound and reported as inexact.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

SIGMAS = 3.0  # c of MC-Suite
FIRST = 64  # tokens before anything is dropped
# A constant dimension, or an entry at a threshold, must not become an outlier by rounding alone.
_SLACK = 1e-9
# Half the width of a band, in standard deviations / sqrt(tokens). A threshold's own standard
# error is 2.3 of these for a normal distribution and about 8 for a kurtosis of 30.
_WIDTH = 16.0
_WIDEST = 2.0  # standard deviations: in a wider band nearly everything would be kept
# A band is at least so many times as wide as its threshold, or the average one, moved since the
# last renewal: tokens of a text are not independent draws, and some dimensions have long tails.
_MOVES = 3.0
_OUTER = 2.0  # the outer half is so many times wider than the inner: little lies there
_PARTS = 64  # kept pieces before they are joined


def margin(mean: Tensor, sigma: Tensor) -> Tensor:
    """Return how far from the mean an outlier begins; both arguments of one shape."""
    return SIGMAS * (1.0 + _SLACK) * sigma + _SLACK * mean.abs()


@dataclass(slots=True)
class _Side:
    """One of the two thresholds t in each dimension; the lower one is held as -x > -t.

    Everything is float64, [D]. ``inner`` is also a number of the outputs' dtype.
    """

    threshold: Tensor  # as estimated at the last renewal
    inner: Tensor  # entries up to here are dropped now
    outer: Tensor  # entries beyond are counted now
    dropped: Tensor  # no entry beyond was ever dropped
    least: Tensor  # the least entry that was merely counted
    counted: int = 0

    @classmethod
    def at(cls, threshold: Tensor) -> _Side:
        """Begin without anything dropped or counted."""
        infinite = torch.full_like(threshold, torch.inf)
        return cls(threshold, threshold, infinite, -infinite, infinite.clone())

    def renew(
        self, threshold: Tensor, sigma: Tensor, tokens: int, dtype: torch.dtype, *, settled: bool
    ) -> None:
        """Lay the band around a better estimate of the threshold, from so many tokens."""
        moved = (threshold - self.threshold).abs()
        typical = torch.where(sigma > 0, moved / sigma, 0.0).mean() * sigma
        width = torch.maximum(_WIDTH / tokens**0.5 * sigma, _MOVES * torch.maximum(moved, typical))
        width = torch.minimum(width, _WIDEST * sigma)
        self.threshold = threshold
        self.inner = (threshold - width).to(dtype).double()
        if settled:
            self.outer = threshold + _OUTER * width
        self.dropped = torch.maximum(self.dropped, self.inner)

    def count_beyond(self, values: Tensor, dimensions: Tensor) -> Tensor:
        """Count the entries beyond the band and return [n] which these are."""
        beyond = values > self.outer[dimensions]
        if bool(beyond.any()):
            self.counted += int(beyond.sum())
            self.least.scatter_reduce_(0, dimensions[beyond], values[beyond], "amin")
        return beyond

    def inexact(self, threshold: Tensor) -> Tensor:
        """Whether entries on the wrong side of the final threshold were lost, [D]."""
        return (threshold < self.dropped) | (threshold >= self.least)


class OutlierCounter:
    """Outliers among the outputs of one expert with D hidden dimensions.

    The bands are renewed at fixed numbers of tokens, so that it plays no part how the outputs are
    cut into chunks; a chunk must not go beyond ``until_renewal``.
    """

    def __init__(self, hidden: int) -> None:
        self._hidden = hidden
        self._tokens = 0
        self._renewal = FIRST
        self._first: list[Tensor] = []  # each [t, D]
        self._kept: list[tuple[Tensor, Tensor]] = []  # each values [n], dimensions [n] int32
        self._sides: tuple[_Side, _Side] | None = None  # upper, lower
        self._bounds: tuple[Tensor, Tensor] | None = None  # what lies between is dropped

    @property
    def until_renewal(self) -> int:
        """Tokens until the bands are renewed: the next chunk may have so many."""
        return self._renewal - self._tokens

    @property
    def kept_entries(self) -> int:
        """How many single entries are held."""
        return sum(t.numel() for t in self._first) + sum(v.numel() for v, _ in self._kept)

    def add(self, outputs: Tensor, mean: Tensor, deviations: Tensor) -> None:
        """Note the outputs [t, D] of the next tokens.

        :param mean: [D] float64 over all tokens so far, these among them
        :param deviations: [D] float64 sum over the same tokens of (output - mean)^2
        """
        assert len(outputs) <= self.until_renewal
        self._tokens += len(outputs)
        if self._bounds is None:
            self._first.append(outputs.clone())
        else:
            high, low = self._bounds
            self._keep(outputs, (outputs > high) | (outputs < low))
        if self._tokens == self._renewal:
            self._renew(outputs.dtype, mean, deviations)
            self._renewal *= 2

    def _keep(self, outputs: Tensor, selected: Tensor) -> None:
        """Keep the entries of outputs [t, D] that are selected, [t, D]."""
        places = selected.flatten().nonzero().squeeze(1)
        values, dimensions = outputs.flatten()[places], places % self._hidden
        self._store(values, dimensions)

    def _store(self, values: Tensor, dimensions: Tensor) -> None:
        """Keep the entries [n], but merely count what is beyond the bands."""
        assert self._sides is not None
        upper, lower = self._sides
        exact = values.double()
        beyond = upper.count_beyond(exact, dimensions) | lower.count_beyond(-exact, dimensions)
        self._kept.append((values[~beyond], dimensions[~beyond].int()))
        if len(self._kept) > _PARTS:
            self._kept = [self._joined()]

    def _joined(self) -> tuple[Tensor, Tensor]:
        values, dimensions = zip(*self._kept, strict=True)
        return torch.cat(values), torch.cat(dimensions)

    def _renew(self, dtype: torch.dtype, mean: Tensor, deviations: Tensor) -> None:
        """Lay new bands and sort out what is kept."""
        sigma, high, low = self._thresholds(mean, deviations)
        if self._sides is None:
            self._sides = (_Side.at(high), _Side.at(-low))
        settled = self.kept_entries > FIRST * self._hidden
        compared = torch.promote_types(dtype, torch.float32)
        for side, threshold in zip(self._sides, (high, -low), strict=True):
            side.renew(threshold, sigma, self._tokens, compared, settled=settled)
        upper, lower = self._sides
        self._bounds = (upper.inner.to(compared), -lower.inner.to(compared))
        first, self._first = self._first, []
        for outputs in first:
            self._keep(outputs, (outputs > self._bounds[0]) | (outputs < self._bounds[1]))
        values, dimensions = self._joined()
        places = dimensions.long()
        stays = (values > self._bounds[0][places]) | (values < self._bounds[1][places])
        self._kept = []
        self._store(values[stays], places[stays])

    def _thresholds(self, mean: Tensor, deviations: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the standard deviation and the upper and the lower threshold, each [D]."""
        sigma = (deviations / max(self._tokens, 1)).sqrt()
        width = margin(mean, sigma)
        return sigma, mean + width, mean - width

    def count(self, mean: Tensor, deviations: Tensor) -> tuple[int, int]:
        """Return the number of outliers, and of dimensions where it is only a bound.

        :param mean: [D] as for `add`, over all tokens
        :param deviations: likewise
        """
        _, high, low = self._thresholds(mean, deviations)
        if self._sides is None:
            return sum(int(((t > high) | (t < low)).sum()) for t in self._first), 0
        upper, lower = self._sides
        values, dimensions = self._joined()
        places = dimensions.long()
        outside = (values.double() > high[places]) | (values.double() < low[places])
        inexact = upper.inexact(high) | lower.inexact(-low)
        return int(outside.sum()) + upper.counted + lower.counted, int(inexact.sum())
