"""`ProbeAnswer`: what a server answered to a probe, and how it is read from a reply."""

from __future__ import annotations

import re
from typing import Any

from pydantic import BaseModel, ConfigDict

from offline.engines.replies import ReplyError, choice_of

_PIECE = re.compile(r"\w+|[^\w\s]")


class ProbeAnswer(BaseModel):
    """The text, what was thought apart from it, and the tool calls that the server found.

    ``finish``: ``length`` where it was cut. ``token_ids`` are those of all that was generated;
    None of a server that does not tell them.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    text: str
    thought: str = ""
    calls: tuple[tuple[str, str], ...] = ()  # name and arguments, as they were written
    finish: str
    tokens: int
    token_ids: tuple[int, ...] | None = None

    @property
    def cut(self) -> bool:
        """Whether it had all the tokens that it may have."""
        return self.finish == "length"

    @property
    def words(self) -> tuple[str, ...]:
        """Return the pieces of all that was written: words, and marks of punctuation."""
        return tuple(_PIECE.findall(f"{self.thought} {self.text}"))


def read_answer(reply: Any) -> ProbeAnswer:
    """Read the reply of a completion or a chat.

    :raises ReplyError: if it is none, or does not say why it ended
    """
    choice = choice_of(reply)
    said = choice.get("message", choice)
    text = said.get("content" if "message" in choice else "text")
    finish = choice.get("finish_reason")
    if not isinstance(finish, str):
        raise ReplyError("leaves out `finish_reason`")
    thought = said.get("reasoning") or said.get("reasoning_content")
    if any(part is not None and not isinstance(part, str) for part in (text, thought)):
        raise ReplyError("gave something else than text as an answer")
    ids, usage = choice.get("token_ids"), reply.get("usage") or {}
    answer = ProbeAnswer(
        text=text or "",
        thought=thought or "",
        calls=tuple(_call(call) for call in said.get("tool_calls") or ()),
        finish=finish,
        tokens=0,
        token_ids=None if ids is None else tuple(ids),
    )
    counted = usage.get("completion_tokens")
    known = counted if isinstance(counted, int) else len(answer.token_ids or answer.words)
    return answer.model_copy(update={"tokens": known})


def _call(call: Any) -> tuple[str, str]:
    function = call.get("function") if isinstance(call, dict) else None
    if not isinstance(function, dict):
        raise ReplyError("gave a tool call without its `function`")
    return str(function.get("name")), str(function.get("arguments") or "")
