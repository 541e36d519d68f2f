"""`DropOrder`: in which order the experts of a layer go, and how much each of them counts."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from offline.calibration.statistics import Floats

Direction = Literal["min", "max"]  # which end of the values is dropped first


@dataclass(frozen=True, slots=True)
class DropOrder:
    """The experts of a layer, first dropped first, and their shares of the layer's importance.

    ``importance`` [E] is by expert id, in 0..1, never falls along ``experts``, and sums to 1: what
    a budget for all layers together goes by. Of values w it is w / sum(w), where w is the
    criterion for ``min-``, and mirrored within the layer (lowest + highest - value) for ``max-``;
    if one is negative, the lowest counts as 0.
    """

    experts: tuple[int, ...]
    importance: Floats

    def __post_init__(self) -> None:
        assert sorted(self.experts) == list(range(len(self.importance))), self.experts

    def beginning_with(self, experts: Collection[int]) -> DropOrder:
        """Return the order in which these experts go before all others, and count for nothing."""
        if not experts:
            return self
        first = [expert for expert in self.experts if expert in experts]
        rest = [expert for expert in self.experts if expert not in experts]
        worth = self.importance.copy()
        worth[first] = 0.0
        total = worth.sum()
        if total > 0:
            worth /= total
        else:
            worth[rest or first] = 1 / len(rest or first)
        return DropOrder((*first, *rest), worth)

    def kept(self, count: int, protected: Collection[int] = ()) -> tuple[int, ...]:
        """Return the ids of the ``count`` experts that go last, in order of id.

        :param protected: experts that stay whatever their place; no more than ``count``
        """
        assert len(protected) <= count <= len(self.experts)
        first = [expert for expert in self.experts if expert not in protected]
        return tuple(sorted((*first[len(self.experts) - count :], *protected)))


def order_of(values: Floats, direction: Direction, unseen: NDArray[np.bool_]) -> DropOrder:
    """Order experts by one value each; of equals the higher id goes first.

    :param values: [E], finite
    :param unseen: [E] experts of which the values say nothing; they go before all others
    """
    keep = values if direction == "min" else -values
    last_first = np.lexsort((-keep, unseen))  # stable: of equals the lower id stays
    return DropOrder(tuple(last_first[::-1].tolist()), _shares(values, direction, unseen))


def pair_order(
    pairs: Floats,
    direction: Direction,
    usage: Floats,
    unseen: NDArray[np.bool_],
    protected: Collection[int] = (),
) -> DropOrder:
    """Order experts by MC-Suite's rule for pairs (section 2.3).

    Of those left, take the pair with the highest (``max``) or lowest (``min``) value, drop the one
    of the two that is used less, and so on; of equals the lowest ids. Each expert counts what the
    pair did that it went with.

    :param pairs: [E, E], finite and symmetric; the diagonal is not looked at
    :param usage: [E] tokens routed to each expert
    :param unseen: [E] experts that share nothing with others because they saw no token; they go
        before all others
    :param protected: of a pair the other one goes; they themselves go last
    """
    num_experts = len(usage)
    values = np.zeros(num_experts)
    order = np.flatnonzero(unseen)[::-1].tolist()
    left = np.where(
        np.tri(num_experts, dtype=bool), -np.inf, pairs if direction == "max" else -pairs
    )
    left[np.ix_(list(protected), list(protected))] = -np.inf
    left[unseen, :] = left[:, unseen] = -np.inf
    last = 0.0
    while (left > -np.inf).any():
        pair = divmod(int(left.argmax()), num_experts)
        last = float(pairs[pair])
        gone = min((p for p in pair if p not in protected), key=lambda p: (usage[p], p))
        values[gone] = last
        order.append(gone)
        left[gone, :] = left[:, gone] = -np.inf
    rest = sorted(set(range(num_experts)) - set(order), key=lambda p: (usage[p], p))
    values[rest] = last
    return DropOrder((*order, *rest), _shares(values, direction, unseen))


def _shares(values: Floats, direction: Direction, unseen: NDArray[np.bool_]) -> Floats:
    """Return each expert's share [E] of its layer's importance, as `DropOrder` defines it."""
    seen = values[~unseen]
    assert np.isfinite(seen).all()
    if not len(seen):
        return np.full(len(values), 1 / len(values))
    worth = values if direction == "min" else seen.max() + seen.min() - values
    worth = np.where(unseen, 0.0, worth - min(0.0, float(worth[~unseen].min())))
    total = worth.sum()
    return worth / total if total > 0 else np.where(unseen, 0.0, 1 / len(seen))
