"""Batched greedy generation is a naive loop over single tokens, whatever is masked or padded."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from offline.engines.local.generation import Prompt, generate
from offline.engines.local.transformers import TransformersEngine
from tests.tiny import random_map

WORDS = ("the", "cat", "sees", "red", "fish", "runs", "to", "house", "in", "sun", "moon", "sea")


def naive(engine: TransformersEngine, prompt: Prompt) -> str:
    ids = list(prompt.ids)
    new: list[int] = []
    while len(new) < prompt.max_tokens:
        new.append(int(engine.logits([ids + new])[0, -1].argmax()))
        text = engine.tokenizer.decode(new, skip_special_tokens=True)
        if new[-1] == prompt.end:
            return str(text)
        if any(stop in text for stop in prompt.stops):
            return str(min((text.split(stop)[0] for stop in prompt.stops), key=len))
    return str(engine.tokenizer.decode(new, skip_special_tokens=True))


def prompts(engine: TransformersEngine) -> Iterator[Prompt]:
    """Lengths 1 to 40; stop strings and end tokens that do occur."""
    rng = np.random.default_rng(8)
    for length in (1, 2, 5, 8, 21, 40, 7):
        text = " ".join(str(word) for word in rng.choice(WORDS, length))
        ids = tuple(engine.tokenizer.encode(text))
        free = naive(engine, Prompt(ids, (), 9, -1)).split()
        yield Prompt(ids, (), 9, -1)
        yield Prompt(ids, (free[3],), 9, -1)
        yield Prompt(ids, ("zzz", f" {free[4]}"), 9, end=2)


@pytest.mark.parametrize("kind", ["base", "sliced", "w_em"])
def test_answers_are_those_of_the_naive_loop(engine: TransformersEngine, kind: str) -> None:
    if kind != "base":
        engine.apply(random_map(engine.folder, np.random.default_rng(3), kinds=(kind,), keep=3))
    asked = list(prompts(engine))
    expected = [naive(engine, prompt) for prompt in asked]
    assert len(set(expected)) > 15
    for tokens_per_batch in (1, 60, 4096):
        answers = generate(engine.model, asked, engine.tokenizer, tokens_per_batch)
        assert [answer.text for answer in answers] == expected


def test_tokens_are_counted_without_padding(engine: TransformersEngine) -> None:
    asked = [Prompt((5, 6, 7), (), 4, -1), Prompt((5,) * 20, (), 4, -1)]
    answers = generate(engine.model, asked, engine.tokenizer, 4096)
    assert [answer.num_tokens for answer in answers] == [3 + 3, 20 + 3]


def test_a_long_prompt_loses_its_beginning(engine: TransformersEngine) -> None:
    lm = engine._scorer
    prompt = Prompt.of(lm, "cat " * 600, {"until": "dog", "max_gen_toks": 12})
    assert len(prompt.ids) == lm.max_length - 12 == 500
    assert (prompt.stops, prompt.max_tokens, prompt.end) == (("dog",), 12, 2)
