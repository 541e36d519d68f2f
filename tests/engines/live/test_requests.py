"""The plan of requests against a simulated engine: what a prompt finds cached, it never answers."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from offline.engines.live.requests import CachedBlocks, ScoringPlan, scoring_plan, watch_plan

Pairs = list[tuple[list[int], list[int]]]
_TOKENS = st.integers(0, 2)  # few, so that beginnings are shared in every way
_PAIRS = st.lists(
    st.tuples(st.lists(_TOKENS, min_size=1, max_size=9), st.lists(_TOKENS, min_size=1, max_size=5)),
    min_size=1,
    max_size=12,
)


def answers(
    plan: ScoringPlan, block: int, cached: set[tuple[int, ...]] | None = None
) -> dict[int, Any]:
    """Run the prompts in order with a prefix cache of ``block`` tokens; slot -> what it answers.

    ``cached`` is what the cache holds before, and then after.
    """
    cached = set() if cached is None else cached
    found: dict[int, Any] = {}
    for prompt, note in zip(plan.prompts, plan.notes, strict=True):
        start = 0
        # vLLM always computes the last token of a prompt.
        while start + block < len(prompt) and prompt[: start + block] in cached:
            start += block
        for position, token, slot in zip(
            note["positions"], note["tokens"], note["slots"], strict=True
        ):
            if position >= start:
                found[slot] = (prompt[: position + 1], token)
        cached |= {prompt[:end] for end in range(block, len(prompt) + 1, block)}
    return found


@pytest.mark.parametrize("share", [True, False])
@given(pairs=_PAIRS, block=st.integers(1, 4))
def test_each_continuation_gets_its_tokens_after_their_own_beginnings(
    share: bool, pairs: Pairs, block: int
) -> None:
    plan = scoring_plan(pairs, max_length=100, share=share)
    found = answers(plan, block)
    assert len(found) == plan.num_slots
    for (context, continuation), slots in zip(pairs, plan.slots, strict=True):
        whole = tuple(context + continuation)
        expected = [(whole[:end], whole[end]) for end in range(len(context), len(whole))]
        assert [found[slot] for slot in slots] == expected


@given(first=_PAIRS, second=_PAIRS, block=st.integers(1, 4))
def test_what_is_cached_is_kept_only_where_every_answer_is_still_computed(
    first: Pairs, second: Pairs, block: int
) -> None:
    cached: set[tuple[int, ...]] = set()
    blocks = CachedBlocks(block)
    before, plan = (scoring_plan(pairs, max_length=100, share=True) for pairs in (first, second))
    answers(before, block, cached)
    blocks.add(before.prompts)
    found = answers(plan, block, cached)
    assert blocks.hides_answers(plan) or len(found) == plan.num_slots
    blocks.clear()
    assert not blocks.hides_answers(plan)


def test_examples_in_common_hide_nothing_but_the_same_question_does() -> None:
    blocks = CachedBlocks(2)
    before, other = ([([5] * 8 + [n], [1, 2, 3, 4])] for n in (6, 7))
    blocks.add(scoring_plan(before, 100, share=True).prompts)
    assert not blocks.hides_answers(scoring_plan(other, 100, share=True))
    assert blocks.hides_answers(scoring_plan(before, 100, share=True))


def test_equal_prompts_run_once_only_when_shared() -> None:
    pairs: Pairs = [([1, 2, 3], [letter]) for letter in range(4)]
    assert len(scoring_plan(pairs, 100, share=True).prompts) == 1
    assert len(scoring_plan(pairs, 100, share=False).prompts) == 4


def test_long_context_loses_its_beginning() -> None:
    plan = scoring_plan([(list(range(1, 101)), [7, 8, 9])], max_length=50, share=True)
    assert plan.prompts == ((*range(53, 101), 7, 8),)


def test_watched_tokens_count_once() -> None:
    pairs: Pairs = [([1, 2, 3], [4, 5]), ([1, 2, 3], [6]), ([1, 2, 3], [7, 8, 9]), ([1], [2])]
    plan = watch_plan(pairs, 100)
    counted = [
        prompt[position]
        for prompt, begin in zip(plan.prompts, plan.begins, strict=True)
        for position in range(begin, len(prompt))
    ]
    assert sorted(counted) == sorted([1, 2, 3, 4, 7, 8, 1])
