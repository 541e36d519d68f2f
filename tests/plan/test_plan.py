"""Plans from saved scores: budgets are met, floors and protection hold, and it is all recorded."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from offline.calibration.blend import parse_blend
from offline.calibration.scores import Scores, tokens_seen
from offline.criteria.registry import CRITERIA
from offline.methods.baselines import most_used, soft_activation
from offline.methods.keep_last import keep_by_criterion
from offline.plan.plan import Plan, plan
from offline.plan.protection import named, parse_protected, super_experts
from offline.plan.recipe import PlanRecipe
from tests.criteria.samples import evidence_of, sample
from tests.criteria.scores import scores_of
from tests.maps.landscape import space_of
from vllm_moe_prune.errors import PruneError

SCORES = scores_of((1, 2, 5))
WORDS = [f"{way}-{name}" for name in CRITERIA for way in ("min", "max")]


def planned(scores: Any = SCORES, **flags: Any) -> Plan:
    return plan(scores, PlanRecipe.of(flags))


def kept(found: Plan) -> dict[int, tuple[int, ...]]:
    return {layer.layer: layer.experts.kept or () for layer in found.routing_map.layers}


def rows(found: Plan) -> list[int]:
    return [layer.num_kept for layer in found.routing_map.layers]


@pytest.mark.parametrize("word", WORDS)
def test_every_criterion_makes_a_map_of_the_size_asked_for(word: str) -> None:
    found = planned(criterion=word, keep=3)
    assert sorted(kept(found)) == [1, 2, 5]
    assert rows(found) == [3, 3, 3]
    assert found.routing_map.form == "plain"
    assert found.routing_map.provenance.settings["criterion"] == word


def test_usage_and_router_scores_are_the_baselines() -> None:
    space = space_of(layers=3, experts=6, keep=3, top_k=2)
    budget = space_of(layers=3, experts=6, top_k=2, budget=11)
    scores = scores_of(tokens=150)
    seen = scores.domains["prose"]
    counts = {n: layer.counts.astype(int).tolist() for n, layer in seen.items()}
    router = {n: layer.scores.tolist() for n, layer in seen.items()}
    for same in (space, budget):
        assert keep_by_criterion(same, scores.evidence(), "min-euf") == most_used(same, counts)
        assert keep_by_criterion(same, scores.evidence(), "euf", same.groups(1)) == most_used(
            same, counts, same.groups(1)
        )
        assert keep_by_criterion(same, scores.evidence(), "soft_activation") == soft_activation(
            same, router
        )


@pytest.mark.parametrize(("ratio", "left"), [(0.0, 6), (0.16, 6), (0.5, 3), (0.34, 4), (0.6, 3)])
def test_a_ratio_is_rounded_down_to_whole_dropped_experts(ratio: float, left: int) -> None:
    assert rows(planned(ratio=ratio)) == [left] * 3


def test_a_ratio_means_what_it_says_in_decimals() -> None:
    scores = scores_of(tokens=100, experts=10)
    assert rows(planned(scores, ratio=0.3)) == [7] * 3
    assert rows(planned(scores, ratio=0.7)) == [3] * 3


def test_layers_that_are_not_listed_keep_all() -> None:
    assert rows(planned(keep_per_layer="1-2:4,5:2")) == [4, 4, 2]
    assert rows(planned(keep_per_layer="5:3")) == [6, 6, 3]


def test_a_budget_goes_where_importance_lies() -> None:
    scores = scores_of((0, 1), tokens=100)
    layers = dict(scores.domains["prose"])
    layers[0] = replace(layers[0], counts=np.array([95.0, 1, 1, 1, 1, 1]))
    layers[1] = replace(layers[1], counts=np.array([20.0, 20, 20, 20, 10, 10]))
    scores = replace(
        scores, domains={"prose": layers}, shape=replace(scores.shape, top_k={0: 1, 1: 1})
    )
    found = planned(scores, criterion="euf", budget=6)
    assert kept(found) == {0: (0,), 1: (0, 1, 2, 3, 4)}
    assert rows(planned(scores, criterion="euf", budget=6, floor=2)) == [2, 4]
    assert planned(scores, criterion="euf", budget=6).routing_map.form == "compact"


@settings(max_examples=80, deadline=None)
@given(
    st.sampled_from(WORDS),
    st.integers(1, 20),
    st.integers(1, 6),
    st.integers(1, 3),
    st.dictionaries(st.integers(0, 2), st.sets(st.integers(0, 5), min_size=1), max_size=3),
    st.booleans(),
    st.integers(0, 3),
)
def test_budget_floor_top_k_and_protection_hold_for_any_input(
    word: str,
    budget: int,
    floor: int,
    top_k: int,
    protect: dict[int, set[int]],
    outliers: bool,
    seed: int,
) -> None:
    text = ",".join(f"{layer}:{expert}" for layer, ids in protect.items() for expert in ids)
    flags: dict[str, Any] = {"criterion": word, "budget": budget, "floor": floor}
    flags |= {"top_k": str(top_k), "protect": text or None, "protect_outliers": outliers}
    scores = scores_of(seed=seed, tokens=30, never=(seed,))
    guarded = {layer: set(protect.get(layer, ())) for layer in range(3)}
    if outliers:  # of 18 experts one is above the 99.5th percentile
        layer, expert = largest_peak(scores)
        guarded[layer].add(expert)
    least = [max(floor, top_k)] * 3
    needed = [max(count, len(guarded[layer])) for layer, count in enumerate(least)]
    refused = refusal(budget, sum(least), sum(needed), floor)
    if refused is not None:
        with pytest.raises(PruneError) as caught:
            planned(scores, **flags)
        assert caught.value.message == refused
        return
    found = planned(scores, **flags)
    assert sum(rows(found)) == budget
    for layer, ids in kept(found).items():
        assert len(ids) >= needed[layer]
        assert guarded[layer] <= set(ids)


def largest_peak(scores: Scores) -> tuple[int, int]:
    """Return layer and expert of the largest entry of all outputs."""
    peaks = {n: layer.peaks for n, layer in scores.domains["prose"].items()}
    layer = max(peaks, key=lambda n: float(peaks[n].max()))
    return layer, int(peaks[layer].argmax())


def refusal(budget: int, least: int, needed: int, floor: int) -> str | None:
    """Return what is said of a budget for 18 experts; None where it can be kept to."""
    if budget > 18:
        return f"--budget {budget}: the model has 18 experts in all"
    if budget < least:
        return (
            f"--budget {budget} is less than the {least} experts that 3 layers keep at least "
            f"(--floor {floor}, and what --top-k activates)"
        )
    if budget < needed:
        return f"--budget {budget}: with the protected experts the layers keep at least {needed}"
    return None


@settings(max_examples=40, deadline=None)
@given(st.sampled_from(WORDS), st.integers(1, 6), st.sets(st.integers(0, 5), min_size=1))
def test_protected_experts_stay_or_it_is_said_that_they_do_not_fit(
    word: str, keep: int, protect: set[int]
) -> None:
    text = ",".join(f"2:{expert}" for expert in protect)
    flags: dict[str, Any] = {"criterion": word, "keep": keep, "top_k": "1", "protect": text}
    if len(protect) > keep:
        with pytest.raises(PruneError, match=f"layer 2 keeps {keep} experts, but {len(protect)}"):
            planned(**flags)
        return
    found = planned(**flags)
    assert protect <= set(kept(found)[2]) and rows(found) == [keep] * 3
    assert kept(found)[5] == kept(planned(criterion=word, keep=keep, top_k="1"))[5]


def test_protection_is_by_decoder_layer_and_expert() -> None:
    assert parse_protected("5:1-2, 1:0,5:5", dict.fromkeys((1, 2, 5), 6)) == {1: (0,), 5: (1, 2, 5)}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("5", "'5' is neither LAYER:EXPERT nor LAYER:FIRST-LAST"),
        ("0:1", "layer 0 has no experts"),
        ("2:6", "layer 2 has experts 0 to 5"),
        ("2:3-1", "layer 2 has experts 0 to 5"),
    ],
)
def test_protection_that_names_nothing_is_refused(text: str, message: str) -> None:
    with pytest.raises(PruneError, match=message):
        planned(keep=3, protect=text)


def with_peaks(*peaks: list[float]) -> dict[int, Any]:
    layers = {n: evidence_of(sample(n, experts=len(row)), n) for n, row in enumerate(peaks)}
    return {
        n: replace(one, seen=replace(one.seen, peaks=np.array(peaks[n])))
        for n, one in layers.items()
    }


def test_super_experts_stand_out_in_the_whole_model() -> None:
    evidence = with_peaks([1, 2, 900, 3, 4, 5], [3, 1, 2, 4, 5, 6])
    assert super_experts(evidence) == {0: (2,)}
    assert super_experts(evidence, percentile=0, share=0.5) == {0: (2,)}
    several = with_peaks([1, 2, 900, 3, 4, 5], [3, 1, 950, 80, 91, 6])
    assert super_experts(several, percentile=50, share=0.1) == {0: (2,), 1: (2,)}
    assert super_experts(several, percentile=50, share=0.09) == {0: (2,), 1: (2, 4)}


def test_super_experts_survive_whatever_the_criterion_says() -> None:
    layers = {n: replace(s, peaks=np.ones(6)) for n, s in SCORES.domains["prose"].items()}
    worst = kept(planned(criterion="min-ean", keep=5))
    victim = (set(range(6)) - set(worst[2])).pop()
    peaks = np.ones(6)
    peaks[victim] = 1000
    layers[2] = replace(layers[2], peaks=peaks)
    found = planned(replace(SCORES, domains={"prose": layers}), keep=5, protect_outliers=True)
    assert found.outliers == found.protected == {2: (victim,)}
    assert victim in kept(found)[2]
    assert named(found.outliers) == f"2:{victim}"
    assert found.routing_map.provenance.settings["protected"] == {"2": [victim]}


def test_domains_are_weighed_at_plan_time() -> None:
    scores = scores_of(domains=("code", "prose"), tokens=100)
    pure = {
        name: kept(planned(scores, keep=2, criterion="euf", domains=name))
        for name in scores.domains
    }
    assert pure["code"] != pure["prose"]
    alone = replace(scores, domains={"code": scores.domains["code"]})
    assert pure["code"] == kept(planned(alone, keep=2, criterion="euf"))
    heavy = kept(planned(scores, keep=2, criterion="euf", domains="code:1000,prose:1"))
    assert heavy == pure["code"]
    assert tokens_seen(scores, {"code": 1.0}) == {
        n: tuple(layer.counts.astype(int)) for n, layer in scores.domains["code"].items()
    }
    both = planned(scores, keep=2, domains="code:3,prose:1").routing_map.tokens_seen
    assert both is not None and sum(both[0]) == 2 * 100 * 2


def test_an_unknown_domain_is_named() -> None:
    with pytest.raises(PruneError, match="no scores of domain 'maths'"):
        planned(keep=3, domains="maths:1")


@pytest.mark.parametrize("text", ["code:x", "code:-1", "code:nan", ":1", "code:1,code:2", ""])
def test_domains_that_make_no_sense_are_refused(text: str) -> None:
    with pytest.raises(PruneError, match="--domains"):
        parse_blend(text)


def test_experts_never_seen_are_reported_and_go_first() -> None:
    scores = scores_of(never=(4,))
    found = planned(scores, keep=5)
    assert found.unseen == dict.fromkeys(range(3), (4,))
    assert kept(found) == dict.fromkeys(range(3), (0, 1, 2, 3, 5))
    assert planned(scores_of(tokens=300), keep=5).unseen == {}


def test_a_layer_without_tokens_is_an_error() -> None:
    layers = dict(SCORES.domains["prose"])
    layers[5] = replace(layers[5], tokens=0.0)
    with pytest.raises(PruneError, match="layer 5 saw no token"):
        planned(replace(SCORES, domains={"prose": layers}), keep=3)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({}, "give one of --keep, --ratio, --keep-per-layer and --budget"),
        ({"keep": 3, "ratio": 0.5}, "give one of --keep, --ratio, --keep-per-layer and --budget"),
        ({"keep": 7}, "--keep 7: layer 1 has 6 experts"),
        ({"keep": 1}, "--top-k 2 does not fit 1 kept experts"),
        ({"ratio": 0.9}, "--top-k 2 in layer 1 does not fit 1 kept experts"),
        ({"ratio": 1.0}, "ratio: Input should be less than 1"),
        ({"keep_per_layer": "1-2:4,2:3"}, "--keep-per-layer 2:3: layer 2 is given twice"),
        ({"keep_per_layer": "9:4"}, "--keep-per-layer 9:4: no layer 9; layers 1 to 5 have experts"),
        ({"keep_per_layer": "1:0"}, "--keep-per-layer 1:0: a layer keeps at least one expert"),
        ({"budget": 5}, "--budget 5 is less than the 6 experts"),
        ({"budget": 19}, "--budget 19: the model has 18 experts in all"),
        ({"keep": 3, "top_k": "4"}, "--top-k 4 does not fit 3 kept experts"),
        ({"keep": 3, "criterion": "magic"}, "unknown criterion 'magic'"),
        (
            {"budget": 6, "protect": "1:0-2"},
            "--budget 6: with the protected experts the layers keep at least 7",
        ),
    ],
)
def test_what_cannot_be_planned_is_said_in_one_line(flags: dict[str, Any], message: str) -> None:
    with pytest.raises(PruneError) as caught:
        planned(**flags)
    assert message in caught.value.message and "\n" not in str(caught.value)


def test_gradients_that_were_not_scored_are_named() -> None:
    with pytest.raises(PruneError, match="criterion ege needs gradients"):
        planned(scores_of(gradients=False), keep=3, criterion="ege")
