"""How EEP makes new genomes from old ones. Pure: all chance comes from the generator given.

Source: arXiv 2407.00945, section 4.3 and the released search's numbers. What is not theirs:
`cross_kept` (crossover while pruning), `aligned` (rows of the same expert meet), `move_budget`, and
that groups of a group-limited router keep equally many experts: an expert gives way to one of its
own router group.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from offline.maps.depth_groups import DepthGroup, Groups, even_rows
from offline.maps.genome import Coefficients, Genome, Kept, Matrix, selected
from offline.maps.router_groups import RouterGroups

# A row whose entries nearly cancel out is not divided by its sum: that would make it explode.
_LEAST_SHARE = 0.05
_ONE = RouterGroups()


@dataclass(frozen=True, slots=True)
class Active:
    """Which groups' matrices a step changes: one flag per group for W_EM and one for W_RM."""

    experts: tuple[bool, ...]
    router: tuple[bool, ...]


def draw_active(
    num_groups: int, experts: float, router: float, draw: np.random.Generator
) -> Active:
    """Activate each W_EM and each W_RM with its probability, again until there is one."""
    while True:
        active = Active(
            tuple(bool(u < experts) for u in draw.random(num_groups)),
            tuple(bool(u < router) for u in draw.random(num_groups)),
        )
        if any(active.experts + active.router):
            return active


def random_genome(groups: Groups, budget: int | None, draw: np.random.Generator) -> Genome:
    """Keep random experts in each group, sorted (EEP's initial population).

    A budget is spread evenly first, then moved between groups up to as many times as there are
    groups.
    """
    rows = even_rows(groups, budget)
    kept = [_sample(group, count, draw) for group, count in zip(groups, rows, strict=True)]
    genome = Genome.of_kept(kept, [g.num_experts for g in groups])
    if any(g.least < g.most for g in groups):
        for _ in range(int(draw.integers(len(groups) + 1))):
            genome = move_budget(genome, groups, draw)
    return genome


def swap_experts(
    genome: Genome,
    active: Active,
    probability: float,
    draw: np.random.Generator,
    router: RouterGroups = _ONE,
) -> Genome:
    """Pruning's mutation: rows of active W_EM move to experts that the group does not keep.

    The genome is one-hot and tied, and stays so: rows of W_RM follow.
    """
    groups = []
    for group, is_active in zip(genome.groups, active.experts, strict=True):
        kept = list(_kept(group))
        parts = router.parts(group.num_experts)
        for row in range(len(kept)):
            if not is_active or draw.random() >= probability:
                continue
            if free := [i for i in _part_of(kept[row], parts) if i not in kept]:
                kept[row] = free[draw.integers(len(free))]
        groups.append(Coefficients.one_hot(kept, group.num_experts))
    return Genome(tuple(groups))


def add_noise(
    genome: Genome, active: Active, probability: float, scale: float, draw: np.random.Generator
) -> Genome:
    """Merging's mutation: elements of active matrices gain ``scale`` times a normal number."""

    def noisy(matrix: Matrix, is_active: bool) -> Matrix:
        if not is_active:
            return matrix
        chosen = draw.random(matrix.shape) < probability
        noise = np.where(chosen, scale * draw.standard_normal(matrix.shape), 0.0)
        return np.asarray(matrix + noise, np.float32)

    return Genome(
        tuple(
            Coefficients(noisy(group.experts, experts), noisy(group.router, router))
            for group, experts, router in zip(
                genome.groups, active.experts, active.router, strict=True
            )
        )
    )


def normalise_rows(genome: Genome) -> Genome:
    """Divide the rows of every W_EM by their sums, but for rows that nearly cancel out."""
    return Genome(
        tuple(Coefficients(_normalised(group.experts), group.router) for group in genome.groups)
    )


def _normalised(matrix: Matrix) -> Matrix:
    total = matrix.sum(axis=1, keepdims=True)
    usable = np.abs(total) >= _LEAST_SHARE * np.abs(matrix).sum(axis=1, keepdims=True)
    usable &= total != 0
    return np.asarray(matrix / np.where(usable, total, 1), np.float32)


def cross_rows(
    front: Genome, back: Genome, active: Active, from_front: float, draw: np.random.Generator
) -> Genome:
    """Merging's crossover: rows of active matrices, and inactive matrices whole, from either.

    W_EM and W_RM are drawn apart, so a row's expert and its router row may have two parents.
    """

    def crossed(mine: Matrix, other: Matrix, is_active: bool) -> Matrix:
        if not is_active:
            return mine if draw.random() < from_front else other
        return np.where(draw.random((len(mine), 1)) < from_front, mine, other)

    from_back = _unequal_from_back(front, back, from_front, draw)
    groups = []
    for number, (mine, other) in enumerate(zip(front.groups, back.groups, strict=True)):
        if mine.rows != other.rows:
            groups.append(other if from_back else mine)
            continue
        experts = crossed(mine.experts, other.experts, active.experts[number])
        router = crossed(mine.router, other.router, active.router[number])
        groups.append(Coefficients(experts, router))
    return Genome(tuple(groups))


def cross_kept(
    front: Genome,
    back: Genome,
    active: Active,
    from_front: float,
    draw: np.random.Generator,
    router: RouterGroups = _ONE,
) -> Genome:
    """Cross one-hot, tied genomes so that the child is one as well.

    An active group keeps what both parents keep and fills its other rows with experts of one of
    them, drawn row by row; an inactive group comes whole from one parent.
    """
    from_back = _unequal_from_back(front, back, from_front, draw)
    groups = []
    for number, (mine, other) in enumerate(zip(front.groups, back.groups, strict=True)):
        if mine.rows != other.rows:
            groups.append(other if from_back else mine)
        elif active.experts[number]:
            parts = router.parts(mine.num_experts)
            kept = _mixed(_kept(mine), _kept(other), parts, from_front, draw)
            groups.append(Coefficients.one_hot(kept, mine.num_experts))
        else:
            groups.append(mine if draw.random() < from_front else other)
    return Genome(tuple(groups))


def aligned(back: Genome, front: Genome) -> Genome:
    """Reorder the rows of ``back``, of W_EM and W_RM alike, to meet those of ``front``.

    Rows with the same main expert get the same place. The order of rows changes nothing that a
    model computes, but a row-wise crossover of unordered parents drops one expert for another.
    """
    return Genome(
        tuple(
            _reordered(other, mine) if mine.rows == other.rows else other
            for mine, other in zip(front.groups, back.groups, strict=True)
        )
    )


def move_budget(genome: Genome, groups: Groups, draw: np.random.Generator) -> Genome:
    """Take an expert from one group and give one to another group of as many layers.

    The row that goes is random; the row that comes selects an expert that is no row's main one.
    With router groups it is one row in each of them. Returns the genome as it is where no such
    pair of groups has room.
    """
    pairs = [
        (giver, taker)
        for giver, gives in enumerate(groups)
        for taker, takes in enumerate(groups)
        if giver != taker
        and gives.size == takes.size
        and genome.groups[giver].rows > gives.least
        and genome.groups[taker].rows < takes.most
    ]
    if not pairs:
        return genome
    giver, taker = pairs[draw.integers(len(pairs))]
    changed = list(genome.groups)
    for part in _parts(groups[giver]):
        changed[giver] = _without_one(changed[giver], part, draw)
    for part in _parts(groups[taker]):
        changed[taker] = _with_another(changed[taker], part, draw)
    return Genome(tuple(changed))


def _unequal_from_back(
    front: Genome, back: Genome, from_front: float, draw: np.random.Generator
) -> bool:
    """Decide which parent gives all groups whose row counts differ.

    They come from one parent together, so that the child spends what that parent spends.
    """
    return front.rows != back.rows and bool(draw.random() >= from_front)


def _mixed(
    front: Kept, back: Kept, parts: Sequence[range], from_front: float, draw: np.random.Generator
) -> Kept:
    """Keep common experts in place; draw the others' rows from either, without repetition.

    A row's expert comes from the router group that the front has there.
    """
    child = list(front)
    mine = {part: [i for i in front if i in part and i not in back] for part in parts}
    other = {part: [i for i in back if i in part and i not in front] for part in parts}
    for row, expert in enumerate(front):
        if expert in back:
            continue
        pool = (mine if draw.random() < from_front else other)[_part_of(expert, parts)]
        child[row] = pool.pop(draw.integers(len(pool)))
    return tuple(child)


def _reordered(coefficients: Coefficients, like: Coefficients) -> Coefficients:
    left = list(range(coefficients.rows))
    order: list[int | None] = []
    for expert in like.main:
        match = next((row for row in left if coefficients.main[row] == expert), None)
        order.append(match)
        if match is not None:
            left.remove(match)
    rows = [left.pop(0) if row is None else row for row in order]
    return Coefficients(coefficients.experts[rows], coefficients.router[rows])


def _without_one(
    coefficients: Coefficients, part: range, draw: np.random.Generator
) -> Coefficients:
    """Drop a random row of those whose main expert is in a router group."""
    rows = [row for row, main in enumerate(coefficients.main) if main in part]
    row = rows[draw.integers(len(rows))]
    return Coefficients(
        np.delete(coefficients.experts, row, axis=0), np.delete(coefficients.router, row, axis=0)
    )


def _with_another(
    coefficients: Coefficients, part: range, draw: np.random.Generator
) -> Coefficients:
    """Add a row that selects a random expert of a router group that is no row's main one."""
    free = [i for i in part if i not in coefficients.main]
    row = np.eye(coefficients.num_experts, dtype=np.float32)[[free[draw.integers(len(free))]]]
    return Coefficients(
        np.concatenate([coefficients.experts, row]), np.concatenate([coefficients.router, row])
    )


def _kept(coefficients: Coefficients) -> Kept:
    kept = selected(coefficients.experts)
    assert kept is not None and coefficients.is_tied, "pruning needs one-hot, tied genomes"
    return kept


def _parts(group: DepthGroup) -> tuple[range, ...]:
    """Return the expert ids of each router group: of all experts where there are none."""
    return RouterGroups(group.step).parts(group.num_experts)


def _part_of(expert: int, parts: Sequence[range]) -> range:
    return next(part for part in parts if expert in part)


def _sample(group: DepthGroup, count: int, draw: np.random.Generator) -> Kept:
    """Draw ``count`` experts, equally many in every router group."""
    each = count // group.step
    drawn = [draw.choice(part, each, replace=False) for part in _parts(group)]
    return tuple(sorted(int(i) for i in np.concatenate(drawn)))
