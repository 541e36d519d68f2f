"""The ratios between the sides of a comparison, with their intervals."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from statistics import median

from loadtest.bootstrap import Sample, interval, pair
from loadtest.metrics import Record, Summary
from loadtest.results import BASE, LIFETIME_METRICS, POINT_METRICS, Lifetime, Ratio, SideName

#: The records of a side in a round at a number of users, for intervals.
RecordsOf = Callable[[Lifetime, int], Sequence[Record]]


def ratios(lifetimes: Sequence[Lifetime], records_of: RecordsOf | None = None) -> tuple[Ratio, ...]:
    """Every candidate / base within each round, for every metric that both sides have.

    Two measurements of one round lie minutes apart, two rounds further: what else the machine
    does changes slowly, so a ratio within a round is steadier than a time.

    :param records_of: where the requests are, for intervals; without it there are none
    """
    names = dict.fromkeys(life.side for life in lifetimes if life.side != BASE)
    found = [ratio for name in names for ratio in _against(name, lifetimes, records_of)]
    return tuple(found)


def _against(
    name: SideName, lifetimes: Sequence[Lifetime], records_of: RecordsOf | None
) -> Iterator[Ratio]:
    sides = {(life.side, life.round): life for life in lifetimes}
    rounds = sorted({life.round for life in lifetimes})
    every = [(sides.get((BASE, r)), sides.get((name, r))) for r in rounds]
    # A comparison whose server is gone ends within a round.
    pairs = [(base, candidate) for base, candidate in every if base and candidate]
    for users in dict.fromkeys(point.users for life in lifetimes for point in life.points):
        both = [one for one in pairs if all(_point(life, users) for life in one)]
        samples = None
        if records_of is not None:
            samples = [pair(records_of(b, users), records_of(c, users)) for b, c in both]
        points = [
            (first, second)
            for base, candidate in both
            if (first := _point(base, users)) and (second := _point(candidate, users))
        ]
        for metric, (read, better) in POINT_METRICS.items():
            values = [(read(first), read(second)) for first, second in points]
            yield from _ratio(metric, users, better, values, name, samples)
    for metric, (look, better) in LIFETIME_METRICS.items():
        yield from _ratio(metric, None, better, [(look(b), look(c)) for b, c in pairs], name, None)


#: What both load generators measure; the first ones do not need a count of tokens.
OPINIONS = (
    *("ttft_ms_p50", "ttft_ms_p95", "itl_ms_p50", "itl_ms_p95", "e2e_ms_p50", "e2e_ms_p95"),
    *("output_tokens_per_second", "tpot_ms_p50", "tpot_ms_p95", "output_tokens_mean"),
)
_UNCOUNTED = 6
_SAME = 0.01  # nearer than this two load generators agree, however narrow the interval is


def second_opinions(
    lifetimes: Sequence[Lifetime], records_of: RecordsOf, second_of: RecordsOf
) -> tuple[Ratio, ...]:
    """What `vllm bench serve` measured by what locust did of the same server, for each of them.

    Where the server does not count its tokens, metrics that need the count are left out.

    :param second_of: where the requests of `vllm bench serve` are
    """
    found: list[Ratio] = []
    for side in dict.fromkeys(life.side for life in lifetimes):
        lives = [life for life in lifetimes if life.side == side and life.second]
        for number, point in enumerate(lives[0].second if lives else ()):
            users = point.users
            both = [life for life in lives if number < len(life.second)]
            samples = [pair(records_of(one, users), second_of(one, users)) for one in both]
            points = [(life.points[number], life.second[number]) for life in both]
            counted = all(ours.tokens_from == "usage" for ours, _ in points)
            for metric in OPINIONS if counted else OPINIONS[:_UNCOUNTED]:
                read, better = POINT_METRICS[metric]
                values = [(read(ours), read(theirs)) for ours, theirs in points]
                found += _ratio(metric, users, better, values, side, samples)
    return tuple(found)


def disagree(ratio: Ratio) -> bool:
    """Whether two load generators differ by more than their interval, and more than a hundredth."""
    if ratio.low is None or ratio.high is None or abs(ratio.median - 1) <= _SAME:
        return False
    return not ratio.low <= 1 <= ratio.high


def _point(life: Lifetime, users: int) -> Summary | None:
    return next((point for point in life.points if point.users == users), None)


def _ratio(
    metric: str,
    users: int | None,
    better: bool | None,
    pairs: Sequence[tuple[float | None, float | None]],
    name: SideName,
    samples: Sequence[tuple[Sample, Sample]] | None,
) -> Iterator[Ratio]:
    values = tuple(c / b for b, c in pairs if b and c is not None)
    if not values:
        return
    if samples is not None and len(values) < len(samples):
        samples = None
    ends = interval(metric, samples, values)
    yield Ratio(
        metric=metric,
        users=users,
        per_round=values,
        median=median(values),
        higher_is_better=better,
        candidate=name,
        low=ends and ends[0],
        high=ends and ends[1],
    )
