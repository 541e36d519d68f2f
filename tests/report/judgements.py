"""Hand-made gates, text and answers of a pruned model."""

from __future__ import annotations

import functools

from offline.check.answer import read_answer
from offline.check.built_in import built_in
from offline.check.comparison import Answers, compare
from offline.report.judged import Judged
from offline.results.check import AnswerCheck, Served, Side
from offline.results.estimate import Estimate
from offline.results.gates import GateResult, GatesResult
from offline.results.text_quality import DomainQuality, TextQuality
from tests.check.speaking import Fault, Speaker
from tests.report.samples import provenance


def estimate(value: float, half: float | None = None) -> Estimate:
    if half is None:
        return Estimate(value=value)
    return Estimate(value=value, low=value - half, high=value + half)


PASSED = GateResult(
    measure="accuracy_drop",
    name="sciq",
    bound="at most",
    limit=0.1,
    verdict="pass",
    measured=estimate(0.079, 0.02),
)
FAILED = GateResult(
    measure="perplexity_ratio",
    name="worst",
    bound="at most",
    limit=1.15,
    verdict="fail",
    measured=estimate(1.31, 0.04),
)
OPEN = GateResult(
    measure="agreement",
    name="code",
    bound="at least",
    limit=0.85,
    verdict="undecided",
    measured=estimate(0.86, 0.03),
    detail="the interval holds the limit: about 9 times as much decides",
)
UNMEASURED = GateResult(
    measure="loops",
    name="more",
    bound="at most",
    limit=0.02,
    verdict="undecided",
    detail="not measured: vmprune check --probes does",
)


def gates(*found: GateResult) -> GatesResult:
    return GatesResult(model="pruned", gates=found or (PASSED, FAILED, OPEN, UNMEASURED))


def text_quality() -> TextQuality:
    """Return a domain of which all was measured, and one of few documents without a base."""
    whole = DomainQuality(
        name="code",
        documents=100,
        tokens=21_345,
        perplexity=estimate(15.5, 0.8),
        base_perplexity=estimate(13.1, 0.7),
        ratio=estimate(1.183, 0.012),
        same_first=estimate(0.86, 0.03),
        divergence=estimate(0.21, 0.02),
        listed=256,
    )
    few = DomainQuality(
        name="notes", documents=3, tokens=99, pieces=True, perplexity=estimate(40.0)
    )
    return TextQuality(model="pruned", base="base", domains=(whole, few), provenance=provenance())


@functools.cache
def answer_check(*, with_base: bool = True, healthy: bool = False) -> AnswerCheck:
    """Return what 100 probes find of a model that loops, thinks on and misspells its calls."""
    probes, samplings = built_in(100), ("greedy", "own")
    faults: dict[Fault, float] = {"loops": 0.4, "thinks on": 0.5, "wrong call": 0.3}
    speakers: dict[Side, Speaker] = {
        "base": Speaker(),
        "pruned": Speaker(faults={} if healthy else faults),
    }
    answers: Answers = {
        (side, sampling, probe.digest): read_answer(
            speaker.said({**probe.body[1], "max_tokens": 1024, "return_token_ids": True})
        )
        for side, speaker in speakers.items()
        for sampling in samplings
        for probe in probes
    }
    rows, lengths, verdict = compare(answers, probes, samplings, has_base=with_base)
    return AnswerCheck(
        base=Served(model="base") if with_base else None,
        pruned=Served(model="pruned", arguments=("serve", "pruned", "--max-model-len", "4096")),
        probes=len(probes),
        source="built-in",
        tokens=1024,
        samplings=samplings,
        skipped={} if healthy else {"code": "status 400: no such tool"},
        rows=rows,
        lengths=lengths,
        verdict=verdict,
        provenance=provenance(),
    )


def judged() -> Judged:
    return Judged(gates(), answer_check(), text_quality())
