"""Hand-made gates, text and answers of a pruned model; and of a sweep of some."""

from __future__ import annotations

from offline.check.answer import read_answer
from offline.check.built_in import built_in
from offline.check.comparison import Answers, compare
from offline.report.judged import Judged
from offline.results.check import AnswerCheck, Served, Side
from offline.results.estimate import Estimate
from offline.results.gates import GateResult, GatesResult
from offline.results.sweep import SweepPoint, SweepResult
from offline.results.text_quality import DomainQuality, TextQuality
from tests.check.speaking import Fault, Speaker
from tests.report.samples import GIB, provenance


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


def sweep(*, gated: bool = True) -> SweepResult:
    """Return a sweep of six choices: dropped early, of search items alone, and measured again."""
    points = []
    for number, (name, size) in enumerate(
        (("min-ean-25", 6), ("min-ean-50", 4), ("naee-50", 4), ("min-ean-75", 2), ("max-rwn-75", 2))
    ):
        again = name not in ("naee-50", "max-rwn-75")
        points.append(
            SweepPoint(
                name=name,
                plan={"criterion": "min-ean", "keep": size},
                digest=f"sha256:{number:064d}",
                experts=30 * size,
                active=2.0,
                num_bytes=size * GIB // 5,
                complete=name != "max-rwn-75",
                search=0.5 + 0.05 * size,
                items=25 if name == "max-rwn-75" else 200,
                seconds=4.5,
                held_out=estimate(0.48 + 0.05 * size, 0.03) if again else None,
                tasks={"sciq": estimate(0.48 + 0.05 * size, 0.03)} if again else {},
                text=text_quality().domains if again and gated else (),
                gates=gates(PASSED if size > 2 else FAILED, OPEN) if again and gated else None,
                on_front=again,
                command=f"vmprune build --model base --map sweep/maps/{name} --out pruned",
            )
        )
    return SweepResult(
        model="demo-moe-8x",
        tasks=("sciq",),
        base_experts=240,
        base_bytes=9 * GIB // 5,
        base_search=0.9,
        base_held_out=estimate(0.88, 0.02),
        points=tuple(points),
        skipped={"min-ege-50": "min-ege needs gradients"} if gated else {},
        left_open=("loops",) if gated else (),
        recommended="min-ean-50" if gated else None,
        provenance=provenance(),
    )
