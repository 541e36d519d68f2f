"""From limits and what was measured to verdicts, by the measurements' intervals."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

from offline.gates.gates import EACH, MEASURES, WORST, Bound, Gates
from offline.results.estimate import Estimate, least, worst
from offline.results.gates import GateResult, GatesResult, Verdict

Evidence = Mapping[str, Mapping[str, Estimate]]  # measure -> name -> what was found


def judge(gates: Gates, evidence: Evidence, model: str) -> GatesResult:
    """Return what follows for each gate: a gate fails if the whole 95 % interval is on the wrong
    side of its limit, passes if it is on the right side, and is undecided else."""
    found = tuple(
        result
        for measure, limits in gates.limits.items()
        for result in _judged(measure, limits, evidence.get(measure, {}))
    )
    return GatesResult(model=model, gates=found)


def _judged(
    measure: str, limits: Mapping[str, float], found: Mapping[str, Estimate]
) -> Iterator[GateResult]:
    for name, limit in limits.items():
        if name == WORST and found:
            yield _gate(measure, name, limit, _worst(measure, found))
        elif name == EACH and found:
            rest = [own for own in found if own not in limits]
            yield from (_gate(measure, own, limit, found[own]) for own in rest)
        elif name in found:
            yield _gate(measure, name, limit, found[name])
        else:
            yield _not_measured(measure, name, limit, found)


def _worst(measure: str, found: Mapping[str, Estimate]) -> Estimate:
    values = list(found.values())
    return worst(values) if MEASURES[measure].bound == "at most" else least(values)


def _gate(measure: str, name: str, limit: float, found: Estimate) -> GateResult:
    bound = MEASURES[measure].bound
    verdict = verdict_of(found, limit, bound)
    return GateResult(
        measure=measure,
        name=name,
        bound=bound,
        limit=limit,
        verdict=verdict,
        measured=found,
        detail=_why(found, limit) if verdict == "undecided" else "",
    )


def verdict_of(found: Estimate, limit: float, bound: Bound) -> Verdict:
    """Return what an interval says of a limit; nothing where there is no interval."""
    if found.low is None or found.high is None:
        return "undecided"
    if bound == "at most":
        return "pass" if found.high <= limit else "fail" if found.low > limit else "undecided"
    return "pass" if found.low >= limit else "fail" if found.high < limit else "undecided"


def _why(found: Estimate, limit: float) -> str:
    """Say how much more it would take: an interval shrinks with the root of what is measured."""
    if found.low is None or found.high is None:
        return "too few were measured for an interval"
    wrong = found.high - found.value if limit >= found.value else found.value - found.low
    away = abs(limit - found.value)
    if away <= 0 or wrong / away > 30:
        return "the interval holds the limit, which is what was measured"
    more = math.ceil((wrong / away) ** 2 - 1e-9)
    return f"the interval holds the limit: about {more} times as much decides"


def _not_measured(
    measure: str, name: str, limit: float, found: Mapping[str, Estimate]
) -> GateResult:
    facts = MEASURES[measure]
    others = f"; measured were {', '.join(found)}" if found else f": {facts.made_by} does"
    return GateResult(
        measure=measure,
        name=name,
        bound=facts.bound,
        limit=limit,
        verdict="undecided",
        detail=f"not measured{others}",
    )
