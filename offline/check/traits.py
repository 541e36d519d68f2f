"""What can be seen of one answer: whether it loops, ends, closes its thinking, parses. Pure."""

from __future__ import annotations

import ast
import re
import textwrap
import warnings
from collections.abc import Hashable, Sequence
from typing import Any, Literal

from offline.check.answer import ProbeAnswer
from offline.check.probes import repetition
from vllm_moe_prune.errors import PruneError
from vllm_moe_prune.reading import parse_json

WINDOW = 256  # the last tokens of an answer, in which loops are looked for
LONGEST_PERIOD = 64
_GRAM = 8
_REPEATED = 0.5  # share of 8-grams that occurred before: more is a loop whose words vary a little
_LEAST = 64  # tokens of which a share says something

_OPENS = ("<think>", "<thinking>", "<thought>", "[THINK]", "<seed:think>", "<|START_THINKING|>")
_CLOSES = ("</think>", "</thinking>", "</thought>", "[/THINK]", "</seed:think>", "<|END_THINKING|>")
_CALL_MARK = re.compile(
    r"</?\|?/?tool_?calls?|\[/?TOOL_CALLS?\]|<\|?tool▁call|<function[=>]|<\|python_tag\|>"
    r"|<\|?/?(?:function|invoke|action)_?(?:call)?\b|functools\[",
    re.IGNORECASE,
)
_FENCE = re.compile(r"^[ \t]*```[ \t]*([\w+-]*)[^\n]*\n(.*?)(?:^[ \t]*```|\Z)", re.S | re.M)
_PYTHON = {"python", "py", "python3"}
Thinking = Literal["none", "open", "closed"]
Call = Literal["read", "none", "broken", "cut"]


def period(units: Sequence[Hashable]) -> int | None:
    """Return the shortest period, of 64 at most, of the last 256 tokens; None if they have none."""
    tail = units[-WINDOW:]
    if len(tail) < WINDOW:
        return None
    fits = (p for p in range(1, LONGEST_PERIOD + 1) if tail[p:] == tail[:-p])
    return next(fits, None)


def loops(units: Sequence[Hashable]) -> bool:
    """Whether an answer's end says the same again and again."""
    tail = units[-WINDOW:]
    often = len(tail) >= _LEAST and repetition(tail, _GRAM) > _REPEATED
    return often or period(units) is not None


def opens_before(answer: ProbeAnswer) -> bool:
    """Whether thinking is closed that was not opened: the prompt's template opened it."""
    closed, opened = _first(answer.text, _CLOSES), _first(answer.text, _OPENS)
    return closed is not None and (opened is None or closed < opened)


def thinking(answer: ProbeAnswer, opened: bool) -> Thinking:
    """Return how far the model came with thinking.

    :param opened: the prompt's template opens it, so that an answer without marks is all thinking
    """
    if answer.thought:
        return "closed" if answer.text.strip() or answer.calls else "open"
    last_open = max(answer.text.rfind(mark) for mark in _OPENS)
    last_close = max(answer.text.rfind(mark) for mark in _CLOSES)
    if last_open == last_close:  # neither is there
        return "open" if opened and not answer.calls else "none"
    return "closed" if last_close > last_open else "open"


def spoken(answer: ProbeAnswer) -> str:
    """Return what follows the thinking that the text holds."""
    ends = [answer.text.rfind(mark) + len(mark) for mark in _CLOSES if mark in answer.text]
    return answer.text[max(ends, default=0) :]


def tool_call(answer: ProbeAnswer, tools: Sequence[dict[str, Any]]) -> Call:
    """Return what became of a tool call.

    ``broken``: it names no tool that was offered, its arguments are no JSON object or lack what is
    required, or marks of a call stand in the text because the server could not read it.
    """
    required = {
        str(tool["function"]["name"]): (tool["function"].get("parameters") or {}).get("required")
        for tool in tools
    }
    if answer.calls:
        is_read = all(
            name in required and _fits(arguments, required[name] or ())
            for name, arguments in answer.calls
        )
        return "read" if is_read else "cut" if answer.cut else "broken"
    text = spoken(answer)
    names = "|".join(map(re.escape, required))
    written = names and re.search(rf"\"name\"\s*:\s*\"(?:{names})\"|\b(?:{names})\s*[({{]", text)
    if written or _CALL_MARK.search(text):
        return "cut" if answer.cut else "broken"
    return "cut" if answer.cut else "none"


def _fits(arguments: str, required: Sequence[str]) -> bool:
    try:
        fields = parse_json(arguments, "arguments")
    except PruneError:
        return False
    return isinstance(fields, dict) and all(name in fields for name in required)


def code_parses(answer: ProbeAnswer) -> bool:
    """Whether the Python in an answer has a right syntax; one that was cut is not asked."""
    if answer.cut:
        return True
    text = spoken(answer)
    blocks = [(language.lower(), code) for language, code in _FENCE.findall(text)]
    named = [code for language, code in blocks if language in _PYTHON]
    if named:
        return all(map(_is_python, named))
    unnamed = [code for language, code in blocks if not language]
    return any(map(_is_python, unnamed or [text]))


def _is_python(code: str) -> bool:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return bool(ast.parse(textwrap.dedent(code)).body)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False


def _first(text: str, marks: Sequence[str]) -> int | None:
    places = [place for mark in marks if (place := text.find(mark)) >= 0]
    return min(places, default=None)
