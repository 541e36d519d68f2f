"""What is seen of one answer, from both sides of every limit."""

from __future__ import annotations

import json
from typing import Any

import pytest

from offline.check.answer import ProbeAnswer, read_answer
from offline.check.traits import (
    code_parses,
    loops,
    opens_before,
    period,
    spoken,
    thinking,
    tool_call,
)
from offline.engines.replies import ReplyError

FRESH = list(range(1000, 3000))  # no token twice


def said(text: str = "", *, finish: str = "stop", **more: Any) -> ProbeAnswer:
    return ProbeAnswer(text=text, finish=finish, tokens=9, **more)


@pytest.mark.parametrize("length", [1, 2, 7, 63, 64])
def test_a_period_of_at_most_64_over_the_last_256_tokens_loops(length: int) -> None:
    loop = (FRESH[500 : 500 + length] * 256)[:256]
    assert period(FRESH[:64] + loop) == length
    assert loops(FRESH[:64] + loop)
    assert period(FRESH[:64] + loop[:-1]) is None  # 255 of them
    assert period([*loop[:-1], 7]) is None
    assert period([*loop[:100], 7, *loop[101:]]) is None


def test_a_longer_period_is_none_and_fresh_text_does_not_loop() -> None:
    assert period((FRESH[:65] * 5)[:256]) is None
    assert not loops((FRESH[:130] * 3)[:256])  # 8-grams repeat, less than half of them
    assert loops((FRESH[:65] * 5)[:256])  # but of these more
    assert not loops(FRESH)
    assert not loops([7] * 20)  # an answer of so few says nothing
    assert loops([7] * 64)
    assert loops(tuple("ab" * 40))  # words, where there are no tokens


def test_a_loop_whose_words_vary_a_little_is_found_by_its_8_grams() -> None:
    varied = [token for n in range(16) for token in [*FRESH[:31], 5000 + n]]
    assert period(varied) is None
    assert loops(varied)


@pytest.mark.parametrize(
    ("answer", "opened", "state"),
    [
        (said("words"), False, "none"),
        (said("words"), True, "open"),
        (said("words</think> more"), True, "closed"),
        (said("<think>words"), False, "open"),
        (said("<think>a</think>b"), False, "closed"),
        (said("<think>a</think>b<think>c"), False, "open"),
        (said("[THINK]a[/THINK]b"), False, "closed"),
        (said("", thought="words", finish="length"), False, "open"),
        (said("", thought="words"), False, "open"),
        (said("yes", thought="words"), False, "closed"),
        (said("", thought="words", calls=(("f", "{}"),)), False, "closed"),
        (said("", calls=(("f", "{}"),)), True, "none"),
    ],
)
def test_thinking_is_closed_by_its_mark_or_by_an_answer(
    answer: ProbeAnswer, opened: bool, state: str
) -> None:
    assert thinking(answer, opened) == state


def test_a_template_that_opens_thinking_is_seen_by_what_closes_it() -> None:
    assert opens_before(said("words</think>answer"))
    assert not opens_before(said("<think>words</think>answer"))
    assert not opens_before(said("answer"))
    assert spoken(said("a </think> b")) == " b"


TOOLS = [
    {"type": "function", "function": {"name": "add", "parameters": {"required": ["a", "b"]}}},
    {"type": "function", "function": {"name": "stop"}},
]
GOOD = json.dumps({"a": 1, "b": 2})


@pytest.mark.parametrize(
    ("answer", "found"),
    [
        (said(calls=(("add", GOOD),)), "read"),
        (said(calls=(("stop", "{}"),)), "read"),
        (said(calls=(("add", GOOD[:-1]),)), "broken"),
        (said(calls=(("add", GOOD[:-1]),), finish="length"), "cut"),
        (said(calls=(("add", "[1, 2]"),)), "broken"),
        (said(calls=(("add", '{"a": 1}'),)), "broken"),
        (said(calls=(("subtract", GOOD),)), "broken"),
        (said(calls=(("add", GOOD), ("add", ""))), "broken"),
        (said(f'<tool_call>{{"name": "add", "arguments": {GOOD}}}</tool_cal'), "broken"),
        (said('{"name": "add", "arguments": {}}'), "broken"),
        (said('add({"a": 1})'), "broken"),
        (said("[TOOL_CALLS]add"), "broken"),
        (said("<tool_call>", finish="length"), "cut"),
        (said("I would add them: 3."), "none"),
        (said("I think of <tool_call></think>It is 3."), "none"),
        (said("It is", finish="length"), "cut"),
    ],
)
def test_a_tool_call_is_read_broken_cut_or_none(answer: ProbeAnswer, found: str) -> None:
    assert tool_call(answer, TOOLS) == found


@pytest.mark.parametrize(
    ("text", "right"),
    [
        ("```python\nx = 1\n```", True),
        ("Text.\n```python\nx = 1\n```\nMore.\n```py\ny = 2", True),  # the fence may be missing
        ("```python\nx = 1\n```\n```python\nx = = 1\n```", False),
        ("```python\ndef f(:\n```", False),
        ("```\nx = 1\n```\n```\n$ python x.py\n```", True),  # one of them is Python
        ("```\n$ python x.py\n```", False),
        ("  ```python\n  if x:\n      y = 1\n  ```", True),
        ("def f(x):\n    return x", True),
        ("I cannot do that.", False),
        ("", False),
        ("```bash\nls\n```\n```python\nx = '\\d'\n```", True),  # a warning is no error
        ("<think>```python\nx = = 1\n```</think>```python\nx = 1\n```", True),
        ("```python\n```", False),
        ("```python\n" + "(" * 5000 + "\n```", False),
        ("```python\nx = '\0'\n```", False),
    ],
)
def test_code_parses_or_not(text: str, right: bool) -> None:
    assert code_parses(said(text)) is right
    assert code_parses(said(text, finish="length"))  # that it does not end is another measure


def test_a_reply_is_read_with_what_it_leaves_out() -> None:
    message = {"content": None, "reasoning": "so", "tool_calls": [{"function": {"name": "f"}}]}
    choice = {"message": message, "finish_reason": "length", "token_ids": [1, 2]}
    read = read_answer({"choices": [choice], "usage": {"completion_tokens": 3}})
    assert read == ProbeAnswer(
        text="", thought="so", calls=(("f", ""),), finish="length", tokens=3, token_ids=(1, 2)
    )
    assert read.cut
    plain = read_answer({"choices": [{"text": "one, two", "finish_reason": "stop"}]})
    assert (plain.text, plain.tokens, plain.words) == ("one, two", 3, ("one", ",", "two"))


@pytest.mark.parametrize(
    "choice",
    [
        {"text": "x"},
        {"text": 5, "finish_reason": "stop"},
        {"message": {"tool_calls": ["f"]}, "finish_reason": "stop"},
        {"text": "x", "finish_reason": "abort"},
    ],
)
def test_a_reply_that_cannot_be_judged_is_refused(choice: dict[str, Any]) -> None:
    with pytest.raises(ReplyError):
        read_answer({"choices": [choice]})
