"""Server-sent events as OpenAI-compatible servers send them; no I/O.

Only ``\\r\\n``, ``\\n`` and ``\\r`` end a line here: JSON may hold other characters that
``str.splitlines`` (and so most HTTP clients' line iterators) would break it at.
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

DONE = "[DONE]"
_LINE_END = re.compile(r"\r\n|\n|\r")


@dataclass(frozen=True, slots=True)
class Delta:
    """What one event adds to an answer; token counts come once, near the end of the stream."""

    text: str = ""
    finish_reason: str | None = None
    prompt_tokens: int | None = None
    output_tokens: int | None = None
    error: str | None = None


def lines(chunks: Iterable[bytes]) -> Iterator[str]:
    """Text lines of a byte stream that may be cut anywhere, also inside a character."""
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
    rest = ""
    for chunk in chunks:
        rest += decoder.decode(chunk)
        # A "\r" at the end may be the first half of "\r\n": wait for what follows.
        held = "\r" if rest.endswith("\r") else ""
        *whole, rest = _LINE_END.split(rest.removesuffix("\r"))
        rest += held
        yield from whole
    *whole, rest = _LINE_END.split(rest + decoder.decode(b"", final=True))
    yield from whole
    if rest:
        yield rest


def events(chunks: Iterable[bytes]) -> Iterator[str]:
    """The ``data`` of each event, ``[DONE]`` included, as soon as its blank line has arrived.

    An event that the stream breaks off is not given, as the standard asks.
    """
    data: list[str] = []
    for line in lines(chunks):
        if not line:
            if data:
                yield "\n".join(data)
            data = []
        elif line.startswith("data:"):
            data.append(line[5:].removeprefix(" "))


def parse_delta(data: str) -> Delta:
    """Read one event of a streamed chat or text completion.

    :raises ValueError: if ``data`` is not a JSON object of that shape
    """
    event = json.loads(data)
    if not isinstance(event, dict):
        raise ValueError(f"not an object: {data[:80]}")
    if event.get("error"):
        return Delta(error=_error_text(event["error"]))
    usage = event.get("usage") or {}
    choice: dict[str, Any] = next(iter(event.get("choices") or []), {})
    return Delta(
        text=_text(choice),
        finish_reason=choice.get("finish_reason"),
        prompt_tokens=usage.get("prompt_tokens"),
        output_tokens=usage.get("completion_tokens"),
    )


def _text(choice: dict[str, Any]) -> str:
    if "text" in choice:
        return choice["text"] or ""
    delta = choice.get("delta") or {}
    # Thinking and tool calls are output that the user waits for, too.
    thinking = delta.get("reasoning_content") or delta.get("reasoning") or ""
    calls = delta.get("tool_calls") or []
    called = "".join((call.get("function") or {}).get("arguments") or "" for call in calls)
    return thinking + (delta.get("content") or "") + called


def _error_text(error: object) -> str:
    message = error.get("message") if isinstance(error, dict) else error
    return str(message or error).strip().partition("\n")[0]
