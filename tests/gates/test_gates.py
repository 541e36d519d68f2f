"""Gates: what a file may say, and what follows from intervals."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from offline.gates.evidence import evidence_in, joined, of_answers, of_run, of_text
from offline.gates.gates import MEASURES, Gates, read_gates
from offline.gates.judge import judge, verdict_of
from offline.results.check import AnswerCheck, Difference, Length, Row, Served, Share
from offline.results.estimate import Estimate
from offline.results.gates import GatesResult
from offline.results.text_quality import DomainQuality
from tests.report.samples import run_result
from vllm_moe_prune.errors import PruneError
from vllm_moe_prune.provenance import Provenance

YAML = """\
text: code:50,prose=notes.txt
accuracy_drop: {sciq: 0.01, each: 0.03}
perplexity_ratio: {each: 1.1, worst: 1.2}
agreement: 0.9
loops: {rate: 0.05, more: 0.02}
length: 1.25
"""


def estimate(value: float, low: float | None = None, high: float | None = None) -> Estimate:
    return Estimate(value=value, low=low, high=high)


def written(tmp_path: Path, text: str) -> Path:
    (tmp_path / "gates.yaml").write_text(text)
    return tmp_path / "gates.yaml"


def test_a_file_is_read(tmp_path: Path) -> None:
    gates = read_gates(written(tmp_path, YAML))
    assert gates.text == "code:50,prose=notes.txt"
    assert gates.limits == {
        "accuracy_drop": {"sciq": 0.01, "each": 0.03},
        "perplexity_ratio": {"each": 1.1, "worst": 1.2},
        "agreement": {"each": 0.9},
        "loops": {"rate": 0.05, "more": 0.02},
        "length": {"ratio": 1.25},
    }
    assert gates.needs_text and gates.needs_agreement
    assert not Gates.model_validate({"text": "code", "loops": 0.1}).needs_text
    assert not Gates.model_validate({"text": "code", "perplexity_ratio": 2}).needs_agreement


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("text: code", "no gate"),
        ("loop: 0.1", "loop: Extra inputs are not permitted"),
        ("loops: many", "loops: Input should be a valid dictionary"),
        ("loops: true", "loops: Input should be a valid dictionary"),
        ("loops: {code: 0.1}", "loops: code is none of rate, more"),
        ("loops: {}", "loops has no limit"),
        ("agreement: .nan", "agreement"),
        ("agreement: 1\nagreement: 2", "agreement is given twice"),
    ],
)
def test_what_is_no_gate_is_said_in_a_line(tmp_path: Path, text: str, message: str) -> None:
    file = written(tmp_path, text)
    with pytest.raises(PruneError, match=f"gates {file}: .*{message}"):
        read_gates(file)


def test_the_schema_has_every_measure_with_a_meaning() -> None:
    fields = Gates.model_json_schema()["properties"]
    assert set(fields) == {"text", *MEASURES}
    assert all(field["description"] for field in fields.values())


EVIDENCE = {
    "accuracy_drop": {
        "sciq": estimate(0.02, 0.011, 0.03),
        "piqa": estimate(0.01, -0.01, 0.03),
        "boolq": estimate(0.02, -0.01, 0.05),
    },
    "perplexity_ratio": {"code": estimate(1.3, 1.25, 1.35), "prose": estimate(1.0)},
    "agreement": {"code": estimate(0.95, 0.93, 0.97), "prose": estimate(0.8, 0.7, 0.91)},
}


def test_intervals_decide(tmp_path: Path) -> None:
    result = judge(read_gates(written(tmp_path, YAML)), EVIDENCE, "pruned")
    found = {(gate.measure, gate.name): gate.verdict for gate in result.gates}
    assert found == {
        ("accuracy_drop", "sciq"): "fail",
        ("accuracy_drop", "piqa"): "pass",
        ("accuracy_drop", "boolq"): "undecided",
        ("perplexity_ratio", "code"): "fail",
        ("perplexity_ratio", "prose"): "undecided",  # no interval
        ("perplexity_ratio", "worst"): "undecided",  # no interval of one of them
        ("agreement", "code"): "pass",
        ("agreement", "prose"): "undecided",
        ("loops", "rate"): "undecided",
        ("loops", "more"): "undecided",
        ("length", "ratio"): "undecided",
    }
    detail = {(gate.measure, gate.name): gate.detail for gate in result.gates}
    assert detail["loops", "rate"] == "not measured: vmprune check --probes does"
    assert "about 9 times as much decides" in detail["accuracy_drop", "boolq"]
    assert "too few" in detail["perplexity_ratio", "prose"]
    assert (result.verdict, result.exit_code) == ("fail", 1)


def test_a_gate_by_name_that_is_not_there_says_what_is() -> None:
    gates = Gates.model_validate({"agreement": {"codes": 0.9}})
    (gate,) = judge(gates, EVIDENCE, "pruned").gates
    assert gate.verdict == "undecided"
    assert gate.detail == "not measured; measured were code, prose"


def test_the_worst_of_domains_is_the_least_agreement() -> None:
    (gate,) = judge(Gates.model_validate({"agreement": {"worst": 0.6}}), EVIDENCE, "x").gates
    assert gate.measured == estimate(0.8, 0.7, 0.91)
    assert gate.verdict == "pass"


@pytest.mark.parametrize(
    ("limit", "verdict", "code"), [(0.5, "pass", 0), (0.94, "undecided", 3), (0.99, "fail", 1)]
)
def test_verdicts_have_exit_codes(limit: float, verdict: str, code: int, tmp_path: Path) -> None:
    evidence = {"agreement": {"code": EVIDENCE["agreement"]["code"]}}
    result = judge(Gates.model_validate({"agreement": limit}), evidence, "x")
    assert (result.verdict, result.exit_code) == (verdict, code)
    result.save(tmp_path)
    assert GatesResult.load(tmp_path) == result
    assert json.loads((tmp_path / "gates_result.json").read_text())["schema_version"] == 1


@given(st.lists(st.floats(-5, 5), min_size=3, max_size=3), st.floats(-5, 5))
def test_both_bounds_mirror_each_other(values: list[float], limit: float) -> None:
    low, value, high = sorted(values)
    other = estimate(-value, -high, -low)
    found = verdict_of(estimate(value, low, high), limit, "at most")
    assert verdict_of(other, -limit, "at least") == found
    assert found == ("pass" if high <= limit else "fail" if low > limit else "undecided")


def test_a_runs_result_gives_the_drop_of_its_choice() -> None:
    result = run_result()
    base, own = result.quality_of("base"), result.quality_of(result.method)
    assert base is not None and own is not None
    found = of_run(result)["accuracy_drop"][own.task]
    assert found.value == pytest.approx(base.accuracy - own.accuracy)
    assert found.low is not None and found.high is not None
    assert found.low < found.value < found.high


def test_text_gives_ratios_and_agreement_where_there_is_a_base() -> None:
    alone = DomainQuality(name="a", documents=9, tokens=90, perplexity=estimate(5.0))
    beside = alone.model_copy(
        update={
            "name": "b",
            "ratio": estimate(1.1),
            "same_first": estimate(0.9),
            "divergence": estimate(0.1),
        }
    )
    served = beside.model_copy(update={"name": "c", "divergence_is_least": True})
    found = of_text([alone, beside, served])
    assert {measure: list(values) for measure, values in found.items()} == {
        "perplexity_ratio": ["b", "c"],
        "agreement": ["b", "c"],
        "divergence": ["b"],  # a least one passes no gate
    }
    assert joined(found, {"agreement": {"b": estimate(0.5)}})["agreement"]["b"].value == 0.5


def answers(sampling: str = "greedy", **rates: tuple[int, int]) -> AnswerCheck:
    """Return a check of 200 answers a side: measure -> how many of the base and the pruned."""

    def share(count: int) -> Share:
        return Share(count=count, n=200, rate=count / 200, low=count / 300, high=(count + 4) / 200)

    rows = [
        Row(
            kind="all",
            sampling=sampling,
            measure=measure,  # type: ignore[arg-type]
            base=share(base),
            pruned=share(pruned),
            difference=Difference(
                value=(pruned - base) / 200,
                low=(pruned - base) / 200 - 0.02,
                high=(pruned - base) / 200 + 0.02,
                only_base=0,
                only_pruned=max(pruned - base, 0),
                p=0.5,
            ),
            probes_needed=400,
            finding="undecided",
        )
        for measure, (base, pruned) in rates.items()
    ]
    length = Length(
        kind="all", sampling=sampling, n=200, base=100, pruned=130, ratio=1.3, low=1.2, high=1.4
    )
    return AnswerCheck(
        base=Served(model="base"),
        pruned=Served(model="pruned"),
        probes=200,
        source="built-in",
        tokens=64,
        samplings=(sampling,),
        rows=tuple(rows),
        lengths=(length,),
        verdict="undecided",
        provenance=Provenance(method="check"),
    )


def test_answers_are_judged_by_their_rates_and_lengths(tmp_path: Path) -> None:
    check = answers(loops=(2, 40), unfinished=(10, 10), empty_while_thinking=(0, 90))
    check.save(tmp_path)
    found = evidence_in(tmp_path)
    assert set(found) == {"loops", "unfinished", "length", "length_least"}
    assert found["loops"]["rate"].value == 0.2
    gates = {
        "loops": {"more": 0.05, "rate": 0.5},
        "unfinished": 0.03,
        "length": 1.3,
        "length_least": 1.1,
    }
    result = judge(Gates.model_validate(gates), found, "pruned")
    assert {(gate.measure, gate.name): gate.verdict for gate in result.gates} == {
        ("loops", "more"): "fail",
        ("loops", "rate"): "pass",
        ("unfinished", "more"): "pass",
        ("length", "ratio"): "undecided",
        ("length_least", "ratio"): "pass",
    }


def test_of_two_ways_of_sampling_the_worse_counts() -> None:
    one, other = answers("greedy", loops=(2, 4)), answers("warm", loops=(2, 40))
    both = one.model_copy(
        update={"samplings": ("greedy", "warm"), "rows": (*one.rows, *other.rows)}
    )
    assert of_answers(both)["loops"]["more"] == of_answers(other)["loops"]["more"]


def test_without_a_base_there_is_no_more_than_it() -> None:
    check = answers(loops=(2, 4))
    rows = tuple(row.model_copy(update={"base": None, "difference": None}) for row in check.rows)
    found = of_answers(check.model_copy(update={"rows": rows, "lengths": ()}))
    assert {measure: list(values) for measure, values in found.items()} == {"loops": ["rate"]}
