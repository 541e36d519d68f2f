"""The schedule: every round's experts and tokens, as arithmetic."""

from __future__ import annotations

import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from offline.lottery.schedule import PRESETS, LotterySettings, rng_of, schedule, settings_of
from vllm_moe_prune.errors import PruneError


@given(st.integers(2, 200), st.data())
def test_rounds_take_the_model_from_all_experts_to_those_kept(
    experts: int, data: st.DataObject
) -> None:
    keep = data.draw(st.integers(1, experts - 1))
    rounds = data.draw(st.one_of(st.none(), st.integers(1, experts - keep)))
    per_round = data.draw(st.integers(1, experts))
    settings = LotterySettings(rounds=rounds, drop_per_round=per_round)
    plans = schedule(settings, experts, keep)
    assert [plan.number for plan in plans] == list(range(1, len(plans) + 1))
    counts = [experts, *(plan.keep for plan in plans)]
    assert [plan.experts for plan in plans] == counts[:-1]
    assert counts[-1] == keep
    drops = [a - b for a, b in itertools.pairwise(counts)]
    assert min(drops) >= 1
    if rounds is None:
        assert len(plans) == math.ceil((experts - keep) / per_round)
        assert max(drops) <= per_round
    else:
        assert len(plans) == rounds
    assert max(drops) - min(drops) <= 1


@given(st.integers(2, 8), st.integers(2, 12), st.data())
def test_groups_of_a_router_lose_equally_in_every_round(
    groups: int, size: int, data: st.DataObject
) -> None:
    left = data.draw(st.integers(1, size - 1))
    per_round = data.draw(st.integers(1, groups * size))
    settings = LotterySettings(drop_per_round=per_round)
    plans = schedule(settings, groups * size, groups * left, groups)
    assert plans[-1].keep == groups * left
    drops = [plan.experts - plan.keep for plan in plans]
    assert all(drop >= groups and drop % groups == 0 for drop in drops)
    assert max(drops) <= max(groups, per_round)


@given(
    st.integers(1, 10**6),
    st.floats(0.25, 4),
    st.one_of(st.none(), st.integers(1, 10**6)),
    st.integers(1, 12),
)
def test_tokens_grow_to_the_cap_and_no_round_repeats_the_text_of_another(
    start: int, factor: float, cap: int | None, rounds: int
) -> None:
    settings = LotterySettings(round_tokens=start, token_factor=factor, token_cap=cap, length=64)
    plans = schedule(settings, rounds + 1, 1)
    for number, plan in enumerate(plans):
        grown = start * factor**number
        assert plan.tokens == max(1, round(min(grown, grown if cap is None else cap)))
    for before, after in itertools.pairwise(plans):
        assert after.skip == before.skip + math.ceil(before.tokens / 64)


def test_the_papers_schedule_ends_with_what_its_table_5_trains_on() -> None:
    plans = schedule(PRESETS["paper"], 8, 2)
    assert [plan.keep for plan in plans] == [7, 6, 5, 4, 3, 2]
    assert [plan.tokens for plan in plans] == [200_000, 400_000, 800_000, *[1_100_000] * 3]
    tuning = PRESETS["paper"].tuning
    assert (tuning.learning_rate, tuning.batch, PRESETS["paper"].length) == (1e-6, 8, 2048)


def test_without_a_finetune_there_are_no_tokens() -> None:
    plans = schedule(LotterySettings(finetune=False), 8, 4)
    assert {plan.tokens for plan in plans} == {plan.skip for plan in plans} == {0}


def test_what_is_given_changes_the_preset_and_the_rest_stays() -> None:
    made = settings_of("paper", learning_rate=1e-5, rounds=2, batch=None, criterion="min-ege")
    assert (made.tuning.learning_rate, made.tuning.batch) == (1e-5, 8)
    assert (made.rounds, made.token_cap, made.needs_gradients) == (2, 1_100_000, True)
    assert not settings_of("paper", criterion="random").needs_gradients


@pytest.mark.parametrize(
    ("rounds", "keep", "message"),
    [
        (None, 8, "--keep 8: every layer has 8 experts, so no round would drop one"),
        (5, 4, "--rounds 5: only 4 experts of a layer are to be dropped"),
    ],
)
def test_a_schedule_that_cannot_be_is_refused(rounds: int | None, keep: int, message: str) -> None:
    with pytest.raises(PruneError, match=message):
        schedule(LotterySettings(rounds=rounds), 8, keep)


def test_more_rounds_than_a_group_has_experts_to_lose_are_refused() -> None:
    with pytest.raises(PruneError, match="only 4 experts of a layer are to be dropped, 2 at a"):
        schedule(LotterySettings(rounds=3), 8, 4, 2)


def test_an_unknown_criterion_is_refused() -> None:
    with pytest.raises(PruneError, match="unknown criterion 'min-luck', nor is it random"):
        settings_of("fast", criterion="min-luck")


def test_a_rounds_random_draws_depend_on_seed_and_round_alone() -> None:
    draws = {(s, n): rng_of(s, n).random() for s in range(3) for n in range(1, 4)}
    assert len(set(draws.values())) == 9
    assert rng_of(1, 2).random() == draws[1, 2]
