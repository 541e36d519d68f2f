"""A budget for all layers together, spread exactly: the multiple-choice knapsack problem."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from offline.maps.depth_groups import Groups


def least_loss_rows(
    groups: Groups, budget: int, losses: Sequence[NDArray[np.float64]]
) -> tuple[int, ...]:
    """Spread a budget over the groups so that the sum of their losses is least.

    Exact, by dynamic programming over the groups and what is spent on them: O(groups x budget x
    counts). As many experts are kept as the budget and the groups' steps allow, also where a loss
    is less with fewer; of equal sums the earlier groups keep more.

    :param budget: experts kept in all layers together, at least the sum of the groups' least
    :param losses: of each group its loss by the rows that it keeps, [most + 1], in any unit that
        adds up; what is below ``least`` is not looked at
    :returns: rows E' of each group
    """
    sums = np.full(budget + 1, np.inf)  # by experts spent on the groups so far
    sums[0] = 0.0
    chosen = np.zeros((len(groups), budget + 1), dtype=np.int64)
    for number, (group, loss) in enumerate(zip(groups, losses, strict=True)):
        better = np.full(budget + 1, np.inf)
        for rows in range(group.least, group.most + 1, group.step):
            cost = rows * group.size
            if cost > budget:
                break
            with_rows = sums[: budget + 1 - cost] + loss[rows]
            less = with_rows < better[cost:]
            better[cost:][less] = with_rows[less]
            chosen[number, cost:][less] = rows
        sums = better
    spent = int(np.flatnonzero(np.isfinite(sums))[-1])
    found = []
    for number in reversed(range(len(groups))):
        found.append(int(chosen[number, spent]))
        spent -= found[-1] * groups[number].size
    return tuple(reversed(found))
