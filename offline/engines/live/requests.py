"""Scoring requests of an evaluation, laid out so that a prefix cache computes contexts once.

A prompt is a context with all but the last token of one continuation. Several prompts may share
their beginning, and what the cache already holds is not computed again: so each position is
asked for every token that *any* prompt with the same beginning wants there, and whichever prompt
computes it answers for all.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from offline.engines.local.packing import group

Tokens = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class ScoringPlan:
    """Prompts to run and where the answers to each (context, continuation) pair come from.

    ``notes[i]`` tells the worker about prompt i: ``positions`` to look at, the ``tokens`` whose
    log-probabilities are wanted there and the ``slots`` to put them into, three equal-long lists.
    ``slots[p]`` are the slots of pair p, one per token of its continuation.
    """

    prompts: tuple[Tokens, ...]
    notes: tuple[dict[str, Any], ...]
    slots: tuple[Tokens, ...]
    num_slots: int


@dataclass(frozen=True, slots=True)
class WatchPlan:
    """Prompts to run while the router is watched.

    Of prompt i the tokens from position ``begins[i]`` on count: the others were counted with the
    prompt of another choice of the same question.
    """

    prompts: tuple[Tokens, ...]
    begins: tuple[int, ...]


class CachedBlocks:
    """Which beginnings of prompts a prefix cache may hold: whole blocks of ``size`` tokens."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._known: set[int] = set()

    def clear(self) -> None:
        """Forget them all."""
        self._known.clear()

    def add(self, prompts: Iterable[Tokens]) -> None:
        """Note that these prompts were computed."""
        for prompt in prompts:
            self._known.update(self._blocks(prompt))

    def hides_answers(self, plan: ScoringPlan) -> bool:
        """Whether a position that a prompt is to answer at may not be computed again."""
        return any(
            note["positions"] and self._cached(prompt) > min(note["positions"])
            for prompt, note in zip(plan.prompts, plan.notes, strict=True)
        )

    def _cached(self, prompt: Tokens) -> int:
        """Return how many of a prompt's first tokens may be in the cache."""
        known = itertools.takewhile(self._known.__contains__, self._blocks(prompt))
        return self._size * sum(1 for _ in known)

    def _blocks(self, prompt: Tokens) -> Iterator[int]:
        """Yield what names each whole block together with all that comes before it."""
        name = 0
        for end in range(self._size, len(prompt) + 1, self._size):
            name = hash((name, prompt[end - self._size : end]))
            yield name


def scoring_plan(
    pairs: Sequence[tuple[Sequence[int], Sequence[int]]], max_length: int, *, share: bool
) -> ScoringPlan:
    """Lay out (context, continuation) pairs of token ids.

    :param max_length: of a prompt; contexts lose their beginning as in `packing.group`
    :param share: whether equal prompts are run once
    """
    slots: list[Tokens] = [()] * len(pairs)
    wanted: dict[Tokens, dict[int, int]] = {}  # beginning -> token after it -> slot
    prompts: dict[tuple[Tokens, int], None] = {}  # with a number that tells equal ones apart
    number = 0
    for question in group(pairs, max_length):
        for place, continuation in zip(question.places, question.continuations, strict=True):
            whole, first = question.context + continuation, len(question.context)
            found = []
            for end in range(first, len(whole)):
                after = wanted.setdefault(whole[:end], {})
                if whole[end] not in after:
                    after[whole[end]] = number
                    number += 1
                found.append(after[whole[end]])
            slots[place] = tuple(found)
            prompts[whole[:-1], 0 if share else place] = None
    notes = tuple(_note(prompt, wanted) for prompt, _ in prompts)
    return ScoringPlan(tuple(prompt for prompt, _ in prompts), notes, tuple(slots), number)


def apart_plan(pairs: Sequence[tuple[Sequence[int], Sequence[int]]]) -> ScoringPlan:
    """Lay out pairs that fit, each to be computed by itself: whole texts share nothing."""
    prompts, notes, slots = [], [], []
    number = 0
    for context, continuation in pairs:
        prompts.append((*context, *continuation[:-1]))
        positions = range(len(context) - 1, len(prompts[-1]))
        places = range(number, number := number + len(continuation))
        notes.append(
            {
                "kind": "score",
                "positions": list(positions),
                "tokens": list(continuation),
                "slots": list(places),
            }
        )
        slots.append(tuple(places))
    return ScoringPlan(tuple(prompts), tuple(notes), tuple(slots), number)


def _note(prompt: Tokens, wanted: dict[Tokens, dict[int, int]]) -> dict[str, Any]:
    note: dict[str, Any] = {"kind": "score", "positions": [], "tokens": [], "slots": []}
    for end in range(1, len(prompt) + 1):
        for token, slot in wanted.get(prompt[:end], {}).items():
            note["positions"].append(end - 1)
            note["tokens"].append(token)
            note["slots"].append(slot)
    return note


def watch_plan(pairs: Sequence[tuple[Sequence[int], Sequence[int]]], max_length: int) -> WatchPlan:
    """Lay out pairs so that each context and each continuation is counted once."""
    prompts, begins = [], []
    for question in group(pairs, max_length):
        for number, continuation in enumerate(question.continuations):
            begin = len(question.context) if number else 0
            prompt = question.context + continuation[:-1]
            if begin < len(prompt):
                prompts.append(prompt)
                begins.append(begin)
    return WatchPlan(tuple(prompts), tuple(begins))
