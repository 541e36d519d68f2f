"""Batched greedy generation is a naive loop over single tokens, whatever is masked or padded."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from offline.engines.decoding import Decoding
from offline.engines.encoding import Prompt
from offline.engines.local.generation import generate
from offline.engines.local.scoring import PackedLM
from offline.engines.local.transformers import TransformersEngine
from tests.engines.served import requests
from tests.tiny import random_map
from vllm_moe_prune.errors import PruneError

WORDS = ("the", "cat", "sees", "red", "fish", "runs", "to", "house", "in", "sun", "moon", "sea")


def to_be_continued(ids: tuple[int, ...], stops: tuple[str, ...], tokens: int) -> Prompt:
    return Prompt(ids, Decoding(stops), tokens)


def naive(engine: TransformersEngine, prompt: Prompt, end: int = -1) -> str:
    ids = list(prompt.ids)
    new: list[int] = []
    while len(new) < prompt.max_tokens:
        new.append(int(engine.logits([ids + new])[0, -1].argmax()))
        if new[-1] == end:
            return str(engine.tokenizer.decode(new[:-1], skip_special_tokens=True))
        text = engine.tokenizer.decode(new, skip_special_tokens=True)
        stops = prompt.decoding.stops
        if any(stop in text for stop in stops):
            return str(min((text.split(stop)[0] for stop in stops), key=len))
    return str(engine.tokenizer.decode(new, skip_special_tokens=True))


def prompts(engine: TransformersEngine) -> Iterator[Prompt]:
    """Lengths 1 to 40; stop strings and end tokens that do occur."""
    rng = np.random.default_rng(8)
    for length in (1, 2, 5, 8, 21, 40, 7):
        text = " ".join(str(word) for word in rng.choice(WORDS, length))
        ids = tuple(engine.tokenizer.encode(text))
        free = naive(engine, to_be_continued(ids, (), 9)).split()
        yield to_be_continued(ids, (), 9)
        yield to_be_continued(ids, (free[3],), 9)
        yield to_be_continued(ids, ("zzz", f" {free[4]}"), 9)


@pytest.mark.parametrize("kind", ["base", "sliced", "w_em"])
def test_answers_are_those_of_the_naive_loop(engine: TransformersEngine, kind: str) -> None:
    if kind != "base":
        engine.apply(random_map(engine.folder, np.random.default_rng(3), kinds=(kind,), keep=3))
    asked = list(prompts(engine))
    free = [naive(engine, prompt) for prompt in asked]
    assert len(set(free)) > 15
    (end,) = engine.tokenizer.encode(free[0].split()[2], add_special_tokens=False)
    ended = [naive(engine, prompt, end) for prompt in asked]
    assert sum(one != other for one, other in zip(free, ended, strict=True)) > 2
    ends = (-1, end)
    for size, given, expected in ((1, ends, ended), (60, (), free), (4096, ends, ended)):
        answers = generate(engine.model, asked, engine.tokenizer, size, given)
        assert [answer.text for answer in answers] == expected


def test_tokens_are_counted_without_padding(engine: TransformersEngine) -> None:
    asked = [to_be_continued((5, 6, 7), (), 4), to_be_continued((5,) * 20, (), 4)]
    answers = generate(engine.model, asked, engine.tokenizer, 4096, ())
    assert [answer.num_tokens for answer in answers] == [3 + 3, 20 + 3]


def test_a_long_prompt_loses_its_beginning(engine: TransformersEngine) -> None:
    lm = engine._scorer
    options = {"until": "dog", "max_gen_toks": 12}
    (prompt,) = lm.prompts(requests(("cat " * 600, options)))
    assert len(prompt.ids) == lm.max_length - 12 == 500
    assert (prompt.decoding.stops, prompt.max_tokens) == (("dog",), 12)


def test_an_answer_that_leaves_no_room_for_its_prompt_is_refused(
    engine: TransformersEngine,
) -> None:
    lm = engine._scorer
    assert lm.prompts(requests(("cat", {"max_gen_toks": 511})))[0].max_tokens == 511
    with pytest.raises(PruneError, match="an answer of 512 tokens leaves none of 512"):
        lm.prompts(requests(("cat", {"max_gen_toks": 512})))


CONTEXT = "the cat sees"


def answers_of(engine: TransformersEngine, options: dict[str, Any], repeats: int = 1) -> list[str]:
    """Ask the same item several times, as lm-eval does for tasks with repeats."""
    asked = requests((CONTEXT, options))
    return engine._scorer.generate_until(asked * repeats)


def test_only_what_follows_the_thinking_counts(engine: TransformersEngine) -> None:
    lm = engine._scorer
    (free,) = answers_of(engine, {"max_gen_toks": 12})
    words = free.split()
    end = next(word for place, word in enumerate(words) if place > 2 and words.count(word) == 1)
    place = words.index(end)
    options = {"max_gen_toks": 12, "think_end": end}
    assert answers_of(engine, options) == [" ".join(words[place + 1 :])]
    stops = [words[1], words[place + 3]]  # one within the thinking, one in the answer
    assert answers_of(engine, {**options, "until": stops}) == [
        " ".join(words[place + 1 : place + 3]) + " "
    ]
    before = lm.unfinished
    assert answers_of(engine, {**options, "think_end": "zzz"}) == [""]
    assert lm.unfinished == before + 1


def test_what_ends_the_thinking_may_be_a_special_token(engine: TransformersEngine) -> None:
    (free,) = answers_of(engine, {"max_gen_toks": 12})
    words = free.split()
    tokenizer = copy.deepcopy(engine.tokenizer)
    tokenizer.add_special_tokens({"additional_special_tokens": [words[3]]})
    lm = PackedLM(engine.model, tokenizer, tokens_per_batch=512, max_length=512)
    asked = requests((CONTEXT, {"max_gen_toks": 12, "think_end": words[3]}))
    assert words[3] not in words[4:]
    assert lm.generate_until(asked)[0].split() == words[4:]


def test_turns_end_where_the_model_says_so(
    engine: TransformersEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    (free,) = answers_of(engine, {"max_gen_toks": 12})
    words = free.split()
    (end,) = engine.tokenizer.encode(words[4], add_special_tokens=False)
    monkeypatch.setattr(engine.model.generation_config, "eos_token_id", [2, end])
    assert answers_of(engine, {"max_gen_toks": 12}) == [" ".join(words[: words.index(words[4])])]


def test_samples_are_drawn_from_the_models_distribution(engine: TransformersEngine) -> None:
    options = {"max_gen_toks": 1, "temperature": 2.0, "top_k": 12, "top_p": 0.9, "seed": 1}
    drawn = answers_of(engine, options, repeats=400)
    logits = engine.logits([engine.tokenizer.encode(CONTEXT)])[0, -1] / 2
    best = logits.topk(12)
    shares = best.values.softmax(-1)
    nucleus = int((shares.cumsum(-1) < 0.9).sum()) + 1
    expected = shares[:nucleus] / shares[:nucleus].sum()
    assert 3 < nucleus < 12
    names = engine.tokenizer.convert_ids_to_tokens(best.indices[:nucleus])
    assert set(drawn) <= {*names}
    for name, share in zip(names, expected.tolist(), strict=True):
        assert drawn.count(name) / len(drawn) == pytest.approx(share, abs=0.08)


def test_the_same_seed_draws_the_same_answers(engine: TransformersEngine) -> None:
    options = {"max_gen_toks": 6, "do_sample": True, "temperature": 1.5}
    seeded = [answers_of(engine, {**options, "seed": seed}, repeats=4) for seed in (1, 1, 2)]
    assert seeded[0] == seeded[1] != seeded[2]
    assert len(set(seeded[0])) > 1
    assert seeded[0][:1] == answers_of(engine, {**options, "seed": 1})
    assert answers_of(engine, {**options, "top_k": 1}) == answers_of(engine, {"max_gen_toks": 6})


@pytest.mark.parametrize("tokens_per_batch", [1, 4096])
def test_samples_do_not_depend_on_batches(
    engine: TransformersEngine, tokens_per_batch: int
) -> None:
    options = {"max_gen_toks": 5, "temperature": 1.0}
    asked = requests(
        *((" ".join(WORDS[:n]), options) for n in (2, 5, 9)), (CONTEXT, {"max_gen_toks": 4})
    )
    lm = PackedLM(engine.model, engine.tokenizer, tokens_per_batch=tokens_per_batch, max_length=300)
    alone = [lm.generate_until([request]) for request in asked]
    assert lm.generate_until(asked) == [text for texts in alone for text in texts]


def test_what_is_timed_goes_on_whatever_the_tokens_are(
    engine: TransformersEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    every = list(range(engine.model.config.vocab_size))  # each token ends an answer
    monkeypatch.setattr(engine.model.generation_config, "eos_token_id", every)
    steps: list[int] = []
    hook = engine.model.register_forward_pre_hook(
        lambda _, __, given: steps.append(len(given["input_ids"])), with_kwargs=True
    )
    try:
        assert engine.reader.decode([[5, 6, 7], [8]], 4) == 8
    finally:
        hook.remove()
    assert steps == [2, 2, 2, 2]
