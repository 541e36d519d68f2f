"""What gates are judged by, from the results that commands leave beside a checkpoint."""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path

from offline.gates.judge import Evidence
from offline.results.check import ALL, ANSWERS_FILE, MEASURES, TOLD_ONLY, AnswerCheck
from offline.results.compression import RESULT_FILE, RunResult
from offline.results.estimate import Estimate, difference, least, worst
from offline.results.text_quality import TEXT_QUALITY_FILE, DomainQuality, TextQuality


def evidence_in(folder: Path) -> dict[str, dict[str, Estimate]]:
    """Return what `vmprune compress`, `eval --save` and `check --probes` left in a folder.

    :raises PruneError: if a file is damaged
    """
    found: dict[str, dict[str, Estimate]] = {}
    if (folder / RESULT_FILE).is_file():
        found |= of_run(RunResult.load(folder))
    if (folder / TEXT_QUALITY_FILE).is_file():
        found |= of_text(TextQuality.load(folder).domains)
    if (folder / ANSWERS_FILE).is_file():
        found |= of_answers(AnswerCheck.load(folder))
    return found


def of_answers(check: AnswerCheck) -> dict[str, dict[str, Estimate]]:
    """Return how many answers end badly, and how many more than of the base; of several ways of
    sampling the worst.

    Where a measure was asked of some ways only, or without a base, that is all there is.
    """
    found: dict[str, dict[str, Estimate]] = {}
    for measure in MEASURES:
        rows = [row for s in check.samplings if (row := check.row(measure, ALL, s)) is not None]
        if measure in TOLD_ONLY or not rows:
            continue
        rates = [_estimate(r.pruned.rate, r.pruned.low, r.pruned.high) for r in rows]
        found[measure] = {"rate": worst(rates)}
        more = [_estimate(d.value, d.low, d.high) for r in rows if (d := r.difference) is not None]
        if len(more) == len(rows):
            found[measure]["more"] = worst(more)
    lengths = [one for s in check.samplings if (one := check.length(ALL, s)) is not None]
    if lengths:
        ratios = [_estimate(one.ratio, one.low, one.high) for one in lengths]
        found["length"] = {"ratio": worst(ratios)}
        found["length_least"] = {"ratio": least(ratios)}
    return found


def of_run(result: RunResult) -> dict[str, dict[str, Estimate]]:
    """Return how much accuracy a run's choice lost on each task's held-out items."""
    held_out = [
        entry for entry in result.quality if entry.split == "test" and entry.measure == "accuracy"
    ]
    base = {entry.task: entry for entry in held_out if entry.variant == "base"}
    drops = {
        entry.task: difference(
            _estimate(base[entry.task].accuracy, base[entry.task].low, base[entry.task].high),
            _estimate(entry.accuracy, entry.low, entry.high),
        )
        for entry in held_out
        if entry.variant == result.method and entry.task in base
    }
    return {"accuracy_drop": drops} if drops else {}


def of_text(domains: Iterable[DomainQuality]) -> dict[str, dict[str, Estimate]]:
    """Return the ratios of perplexities and the agreement of each domain."""
    found: dict[str, dict[str, Estimate]] = {}
    for domain in domains:
        values = {
            "perplexity_ratio": domain.ratio,
            "agreement": domain.same_first,
            "divergence": None if domain.divergence_is_least else domain.divergence,
        }
        for measure, value in values.items():
            if value is not None:
                found.setdefault(measure, {})[domain.name] = value
    return found


def joined(*parts: Evidence) -> dict[str, dict[str, Estimate]]:
    """Return what several measurements say together; of the same thing the last one."""
    found: dict[str, dict[str, Estimate]] = {}
    for part in parts:
        for measure, values in part.items():
            found.setdefault(measure, {}).update(values)
    return found


def _estimate(value: float, low: float, high: float) -> Estimate:
    if not math.isfinite(low):  # a metric that is no share
        return Estimate(value=value)
    return Estimate(value=value, low=low, high=high)
