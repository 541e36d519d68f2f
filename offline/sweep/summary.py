"""From everything that a sweep measured to its `SweepResult`: the front, the gates, the choice."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from offline.fitness.candidate import Assessment
from offline.fitness.objective import Objective
from offline.gates.evidence import joined, of_text
from offline.gates.gates import Gates
from offline.gates.judge import judge
from offline.results.decode_speed import DecodeSpeed
from offline.results.estimate import Estimate, difference
from offline.results.gates import GatesResult
from offline.results.sweep import SweepPoint, SweepResult
from offline.results.text_quality import DomainQuality
from offline.sweep.choices import Choice, Choices, build_command
from offline.sweep.front import front, smallest
from offline.sweep.settings import SweepSettings
from offline.tasks.results import TaskResult
from vllm_moe_prune.checkpoint import Checkpoint
from vllm_moe_prune.provenance import Provenance

Results = Mapping[str, TaskResult]
# What a sweep can say something of; the others are of `vmprune check`.
_MEASURED = ("accuracy_drop", "perplexity_ratio", "agreement", "divergence")


@dataclass(frozen=True, slots=True)
class Findings:
    """Everything that was measured.

    ``race``: how each choice did, by name. ``before``: the base on search items, ``base`` on
    held-out ones. ``held_out`` and ``texts``: those that were measured again, by name.
    """

    race: Mapping[str, Assessment]
    before: Results
    base: Results
    held_out: Mapping[str, Results]
    texts: Mapping[str, tuple[DomainQuality, ...]]


def result_of(
    base: Checkpoint,
    choices: Choices,
    objective: Objective,
    settings: SweepSettings,
    found: Findings,
    gates: Gates | None,
    made: Provenance,
    out: Path,
) -> SweepResult:
    """Say everything: what is on the front, and which is the smallest that passes the gates.

    :param out: where maps will be, for the commands
    """
    shares = objective.shares
    sizes = {one.name: one for one in choices.found}
    quality = {name: estimate_of(results, shares) for name, results in found.held_out.items()}
    values = {name: one.value for name, one in quality.items()}
    best = front(sizes, values)
    own, left_open = (None, ()) if gates is None else _split(gates)
    verdicts = {} if own is None else {
        name: _judged(own, found.base, results, found.texts.get(name, ()), name)
        for name, results in found.held_out.items()
    }  # fmt: skip
    passing = {name: values[name] for name, one in verdicts.items() if one.verdict == "pass"}
    points = [
        _point(
            one,
            found.race[one.name],
            build_command(str(base.folder), out, one.name, settings),
            {
                "held_out": quality.get(one.name),
                "tasks": {n: _own(r) for n, r in found.held_out.get(one.name, {}).items()},
                "text": found.texts.get(one.name, ()),
                "gates": verdicts.get(one.name),
                "on_front": one.name in best,
            },
        )
        for one in choices.found
    ]
    return SweepResult(
        model=base.name,
        tasks=objective.names,
        base_experts=sum(base.expert_counts().values()),
        base_bytes=base.num_bytes,
        base_search=estimate_of(found.before, shares).value,
        base_held_out=estimate_of(found.base, shares),
        points=tuple(points),
        skipped=dict(choices.skipped),
        left_open=left_open,
        recommended=smallest(sizes, passing),
        provenance=made,
    )


def with_speeds(result: SweepResult, speeds: Mapping[str, DecodeSpeed]) -> SweepResult:
    """Return a result with how fast some of its points generate, by name."""
    points = tuple(
        point.model_copy(update={"speed": speeds.get(point.name)}) for point in result.points
    )
    return result.model_copy(update={"points": points})


def estimate_of(results: Results, shares: Mapping[str, float]) -> Estimate:
    """Return the mean accuracy of tasks by their shares, with the interval that theirs give."""
    each = {name: _own(results[name]) for name in shares}
    value = math.fsum(share * each[name].value for name, share in shares.items())
    if any(one.low is None or one.high is None for one in each.values()):
        return Estimate(value=value)
    below = math.hypot(*(s * (each[n].value - (each[n].low or 0.0)) for n, s in shares.items()))
    above = math.hypot(*(s * ((each[n].high or 0.0) - each[n].value) for n, s in shares.items()))
    return Estimate(value=value, low=value - below, high=value + above)


def _own(result: TaskResult) -> Estimate:
    low, high = result.confidence_interval()
    if not math.isfinite(low):
        return Estimate(value=result.accuracy)
    return Estimate(value=result.accuracy, low=low, high=high)


def _split(gates: Gates) -> tuple[Gates | None, tuple[str, ...]]:
    """Return the gates that a sweep can judge by, and the names of the others."""
    others = tuple(name for name in gates.limits if name not in _MEASURED)
    if len(others) == len(gates.limits):
        return None, others
    return gates.model_copy(update=dict.fromkeys(others)), others


def _judged(
    gates: Gates, base: Results, results: Results, text: tuple[DomainQuality, ...], name: str
) -> GatesResult:
    drops = {task: difference(_own(base[task]), _own(results[task])) for task in results}
    return judge(gates, joined({"accuracy_drop": drops}, of_text(text)), name)


def _point(
    choice: Choice, found: Assessment, command: str, measured: Mapping[str, object]
) -> SweepPoint:
    return SweepPoint.model_validate(
        {
            "name": choice.name,
            "plan": dict(choice.plan),
            "digest": choice.routing_map.digest(),
            "experts": choice.experts,
            "active": choice.active,
            "num_bytes": choice.num_bytes,
            "complete": found.complete,
            "search": found.fitness,
            "items": found.items,
            "seconds": round(found.seconds, 3),
            "command": command,
            **measured,
        }
    )
