"""Server-sent events as OpenAI-compatible servers send them; no I/O.

Only ``\\r\\n``, ``\\n`` and ``\\r`` end a line here: JSON may hold other characters that
``str.splitlines`` (and so most HTTP clients' line iterators) would break it at. Lines are cut as
bytes, because none of these occurs inside a character of UTF-8.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any

from pydantic_core import from_json

DONE = b"[DONE]"
_LINE_END = re.compile(rb"\r\n|\n|\r")
_MARK = b"\xef\xbb\xbf"
_ANSWER = ("content", "refusal", "tool_calls", "function_call", "audio")
_THINKING = ("reasoning_content", "reasoning", "thinking")
_SAYINGS = ("message", "detail", "msg", "error", "reason", "description")
_FAILED = {"error", "abort"}  # finish reasons that are none


@dataclass(frozen=True, slots=True)
class Event:
    """One event: its data, several lines joined, and its type (empty: an ordinary message)."""

    data: bytes
    kind: bytes = b""


@dataclass(frozen=True, slots=True)
class Delta:
    """What one event adds to an answer.

    ``output``: it holds something that the model wrote; ``answer``: and that is not its thinking.
    ``choice``: the event speaks of the answer at all; ``opening``: it only names the role. Token
    counts are the server's, so far.
    """

    output: bool = False
    answer: bool = False
    text: str = ""
    choice: bool = False
    opening: bool = False
    finish_reason: str | None = None
    prompt_tokens: int | None = None
    output_tokens: int | None = None
    error: str | None = None


class EventParser:
    """Cuts a byte stream, which may be broken anywhere, into events as they become whole."""

    def __init__(self) -> None:
        self._rest = b""
        self._after_return = False
        self._begun = False
        self._data: list[bytes] = []
        self._kind = b""

    def feed(self, chunk: bytes) -> list[Event]:
        """Return the events that ``chunk`` completes."""
        if self._after_return and chunk.startswith(b"\n"):
            chunk = chunk[1:]  # the second half of "\r\n"
        if chunk:
            # A "\r" ends its line at once: waiting for a "\n" would date the event too late.
            self._after_return = chunk.endswith(b"\r")
        text = self._rest + chunk
        if not self._begun and text:
            if len(text) < len(_MARK) and _MARK.startswith(text):
                self._rest = text
                return []
            self._begun, text = True, text.removeprefix(_MARK)
        *lines, self._rest = _LINE_END.split(text) if b"\r" in text else text.split(b"\n")
        return [event for line in lines if (event := self._line(line)) is not None]

    def end(self) -> list[Event]:
        """Return what the stream ended in, if it is more than nothing: an event without its blank
        line. Whether it is whole is for its reader to say."""
        found = self._line(self._rest) if self._rest else None
        last = self._line(b"")
        self._rest = b""
        return [event for event in (found, last) if event is not None]

    def _line(self, line: bytes) -> Event | None:
        if not line:
            event = Event(b"\n".join(self._data), self._kind) if self._data else None
            self._data, self._kind = [], b""
            return event
        if line.startswith(b"data:"):
            self._data.append(line[5:].removeprefix(b" "))
        elif line.startswith(b"event:"):
            self._kind = line[6:].strip()
        return None


def parse_delta(event: Event) -> Delta:
    """Read one event of a streamed chat or text completion.

    :raises ValueError: if its data is not a JSON object
    """
    if event.kind == b"error":
        return Delta(error=_error_text(_json_or_text(event.data)))
    fields = from_json(event.data)
    if not isinstance(fields, dict):
        raise ValueError(f"not an object: {_short(event.data)}")
    choices, usage = fields.get("choices"), fields.get("usage")
    if fields.get("error"):
        return Delta(error=_error_text(fields["error"]))
    if "choices" not in fields and "usage" not in fields:
        if event.kind == b"ping" or fields.get("type") == "ping":
            return Delta()
        return Delta(error=_error_text(fields))  # an error of whatever shape
    counts = usage if isinstance(usage, dict) else {}
    prompt, tokens = (_count(counts.get(f"{one}_tokens")) for one in ("prompt", "completion"))
    if not choices:
        return Delta(prompt_tokens=prompt, output_tokens=tokens)
    first = choices[0] if isinstance(choices, list) else None
    if not isinstance(first, dict):
        raise ValueError(f"choices that are none: {_short(event.data)}")
    return _of_choice(first, prompt, tokens)


def _of_choice(choice: dict[str, Any], prompt: int | None, tokens: int | None) -> Delta:
    reason = choice.get("finish_reason")
    reason = reason if reason is None else str(reason)
    if reason in _FAILED:
        return Delta(error=f"the server ended the answer with {reason!r}")
    found = choice.get("delta")
    delta = found if isinstance(found, dict) else {}
    said = choice["text"] if "text" in choice else delta.get("content")
    answer = bool(said) or any(delta.get(name) for name in _ANSWER)
    output = answer or any(delta.get(name) for name in _THINKING)
    return Delta(
        output=output,
        answer=answer,
        text=said if isinstance(said, str) else "",
        choice=True,
        opening="role" in delta and not output,
        finish_reason=reason,
        prompt_tokens=prompt,
        output_tokens=tokens,
    )


def _count(value: Any) -> int | None:
    return value if type(value) is int else None


def _json_or_text(data: bytes) -> Any:
    try:
        return from_json(data)
    except ValueError:
        return data.decode(errors="replace")


def _error_text(error: Any) -> str:
    """The first line of what an error says, wherever it says it."""
    while isinstance(error, dict):
        told = next((error[name] for name in _SAYINGS if error.get(name)), None)
        error = json.dumps(error) if told is None else told
    return str(error).strip().partition("\n")[0][:300]


def _short(data: bytes) -> str:
    return data[:80].decode(errors="replace")
