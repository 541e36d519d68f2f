"""What a request's options mean, and what of a generated text is the answer."""

from __future__ import annotations

from typing import Any

import pytest

from offline.engines.decoding import Decoding
from vllm_moe_prune.errors import PruneError


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, Decoding()),
        ({"until": None}, Decoding()),
        ({"until": "\n"}, Decoding(("\n",))),
        ({"until": ["", "a", "b"], "max_gen_toks": 9}, Decoding(("a", "b"), 9)),
        ({"max_new_tokens": 7}, Decoding(max_tokens=7)),
        ({"max_completion_tokens": 6, "max_tokens": 5}, Decoding(max_tokens=5)),
        ({"do_sample": False, "temperature": 0.0, "num_beams": 1}, Decoding()),
        ({"do_sample": False, "temperature": 0.7, "top_p": 0.5, "seed": 3}, Decoding()),
        ({"do_sample": True, "temperature": 0}, Decoding()),
        ({"temperature": 0.7, "seed": 3}, Decoding(temperature=0.7, seed=3)),
        ({"do_sample": True, "top_p": 0.5}, Decoding(temperature=1.0, top_p=0.5)),
        ({"temperature": 1, "top_k": -1, "min_p": 0}, Decoding(temperature=1.0)),
        ({"temperature": 1, "top_k": 20}, Decoding(temperature=1.0, top_k=20)),
        ({"think_end": "</think>"}, Decoding(think_end="</think>")),
    ],
)
def test_options_are_lm_evals(options: dict[str, Any], expected: Decoding) -> None:
    before = dict(options)
    assert Decoding.of(options) == expected
    assert options == before


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"presence_penalty": 1.5}, "'presence_penalty' is not offered"),
        ({"temprature": 0.5}, "'temprature' is not offered"),
        ({"num_beams": 4}, "num_beams is 4"),
        ({"temperature": -0.1}, "temperature is -0.1: it is a number from 0 to 100"),
        ({"temperature": "hot"}, "temperature is 'hot'"),
        ({"temperature": float("nan")}, "temperature is nan"),
        ({"top_p": 0}, "top_p is 0"),
        ({"top_p": 1.5}, "top_p is 1.5"),
        ({"top_k": 2.5}, "top_k is 2.5: it is a whole number from -1 on"),
        ({"seed": -1}, "seed is -1: it is a whole number from 0 on"),
        ({"max_gen_toks": 0}, "max_gen_toks is 0"),
        ({"max_new_tokens": True}, "max_new_tokens is True"),
        ({"do_sample": "yes"}, "do_sample is 'yes': it is true or false"),
    ],
)
def test_what_no_engine_honours_is_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(PruneError) as caught:
        Decoding.of(options)
    assert said in caught.value.message
    assert "\n" not in str(caught.value)


THINKS = Decoding(stops=("\n\n", "Question:"), think_end="</think>")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("<think>\n\nQuestion: 6 x 7?\n\n</think>\n\n42", "42"),
        ("<think>41?</think>42\n\nQuestion: no", "42"),
        ("41</think> 42 </think> 43", "43"),
        ("41</think>42<|im_end|>", "42"),
        ("<think>42", None),
        ("42\n\n", None),
        ("42</think>", ""),
    ],
)
def test_what_comes_before_the_end_of_thinking_does_not_count(
    text: str, expected: str | None
) -> None:
    assert THINKS.answer(text, ["<|im_end|>"]) == expected
    assert THINKS.engine_stops == ()


def test_without_thinking_the_text_is_the_answer() -> None:
    plain = Decoding(stops=("\n\n", "</think>"))
    assert plain.engine_stops == plain.stops
    assert plain.answer(" 41</think>42", ["</think>"]) == " 41"
    assert plain.answer(" 41 \n\n42", []) == " 41 "


def test_seeds_are_one_for_each_prompt_and_occurrence() -> None:
    asked = [
        (Decoding(temperature=1.0, seed=seed), ids, occurrence)
        for seed in (0, 1)
        for ids in ((1, 2), (1, 3))
        for occurrence in (0, 1)
    ]
    seeds = [decoding.seed_of(ids, occurrence) for decoding, ids, occurrence in asked]
    assert len(set(seeds)) == len(asked)
    assert all(0 <= seed < 1 << 31 for seed in seeds)
    assert seeds == [decoding.seed_of(list(ids), number) for decoding, ids, number in asked]
