"""The ways in which the scripted server answers, and what a right client makes of each."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

Outcome = Literal["ok", "failed"]
Place = Literal["content", "reasoning_content", "reasoning", "refusal", "arguments"]


@dataclass(frozen=True, slots=True)
class Mode:
    """One way to answer.

    What is streamed: ``tokens`` (None: as many as were asked for), ``per_chunk`` of them in an
    event, ``invisible`` ones without text (negative: without an event), ``thinking`` of them first,
    ``packet`` events at a time. How it is framed: line ``end``, ``space`` after ``data:``, what
    stands ``before`` an event, whether bytes come one by one (``trickle``), ``body``, ``gzip``,
    ``done``. How it fails: ``status`` with ``answer`` and ``headers``, or after ``fault_at`` tokens
    ``fault``; ``raw`` goes out as it is.

    Expected: ``outcome``, a part of its ``error`` and whether the server ``counts`` the tokens.
    """

    place: Place = "content"
    tokens: int | None = None
    per_chunk: int = 1
    invisible: int = 0
    thinking: int = 0
    packet: int = 1
    role: bool = True
    call_name: bool = False
    function_call: bool = False
    usage: Literal["last", "none", "null", "choices", "continuous", "late"] = "last"
    finish: Literal["own", "last", "none"] = "own"
    reason: str = "stop"
    end: bytes = b"\n"
    space: bool = True
    before: bytes = b""
    trickle: bool = False
    halves: bool = False
    body: Literal["chunked", "close", "http10", "big"] = "chunked"
    gzip: bool = False
    done: Literal["yes", "no", "unended", "hang"] = "yes"
    status: int = 200
    answer: bytes = b""
    content_type: str = "text/event-stream"
    headers: tuple[tuple[str, str], ...] = ()
    fault_at: int | None = None
    fault: Literal["reset", "fin", "hang", "raw", "stall"] | None = None
    raw: bytes = b""
    stall: float = 0.0
    outcome: Outcome = "ok"
    error: str = ""

    @property
    def counts(self) -> bool:
        """Whether the server says how many tokens there were."""
        return self.usage not in {"none", "null"}


def _fails(error: str, **fields: Any) -> Mode:
    return Mode(outcome="failed", error=error, **fields)


def _status(status: int, answer: bytes = b'{"error": {"message": "no"}}', **fields: Any) -> Mode:
    answered = {"status": status, "answer": answer, "content_type": "application/json", **fields}
    return _fails(f"HTTP {status}", **answered)


def _midway(raw: bytes, error: str, **fields: Any) -> Mode:
    return _fails(error, fault_at=3, fault="raw", raw=raw, **fields)


_CRLF = b"\r\n"
FRAMING = {
    "plain": Mode(),
    "no role": Mode(role=False),
    "crlf": Mode(end=_CRLF),
    "cr": Mode(end=b"\r"),
    "no space": Mode(space=False),
    "comments": Mode(before=b": ping\n\n"),
    "event and id": Mode(before=b"event: message\nid: 7\nretry: 10\n"),
    "byte by byte": Mode(trickle=True, tokens=4),
    "byte by byte, crlf": Mode(trickle=True, end=_CRLF, tokens=4),
    "events in halves": Mode(halves=True),
    "byte order mark": Mode(before=b""),
    "gzip": Mode(gzip=True),
    "until close": Mode(body="close"),
    "http 1.0": Mode(body="http10"),
    "one long chunk": Mode(body="big"),
    "no blank line at the end": Mode(done="unended"),
    "no done": Mode(done="no"),
    "done and silence": Mode(done="hang"),
    "finish with last": Mode(finish="last"),
    "finish length": Mode(reason="length"),
    "completion text": Mode(),
}
TOKENS = {
    "two a chunk": Mode(per_chunk=2),
    "three a chunk": Mode(per_chunk=3),
    "two a chunk, continuous": Mode(per_chunk=2, usage="continuous"),
    "two a chunk, uncounted": Mode(per_chunk=2, usage="none"),
    "invisible": Mode(invisible=2),
    "invisible, continuous": Mode(invisible=2, usage="continuous"),
    "invisible, none sent": Mode(invisible=-2, usage="continuous"),
    "packets of four": Mode(packet=4),
    "usage none": Mode(usage="none"),
    "usage null": Mode(usage="null"),
    "usage with choices": Mode(usage="choices"),
    "usage continuous": Mode(usage="continuous"),
    "usage after a while": Mode(usage="late"),
    "one token": Mode(tokens=1),
    "first token is the end": Mode(tokens=0),
    "first token is the end, continuous": Mode(tokens=0, usage="continuous"),
    "stall within": Mode(fault_at=3, fault="stall", stall=0.15),
}
PLACES = {
    "reasoning_content": Mode(place="reasoning_content", thinking=-1),
    "reasoning": Mode(place="reasoning", thinking=-1),
    "thinks, then answers": Mode(thinking=4),
    "thinks, then answers, continuous": Mode(thinking=4, usage="continuous"),
    "refusal": Mode(place="refusal"),
    "tool call": Mode(place="arguments", call_name=True, reason="tool_calls"),
    "tool call without arguments": Mode(call_name=True, tokens=0, reason="tool_calls"),
    "function call": Mode(function_call=True, tokens=0, reason="function_call"),
}
ERRORS = {
    "400": _status(400),
    "401": _status(401),
    "404": _status(404, b"<html>not found</html>"),
    "429": _status(429),
    "429 in 1 s": _status(429, headers=(("Retry-After", "1"),)),
    "429 by date": _status(429, headers=(("Retry-After", "Fri, 01 Jan 2100 00:00:00 GMT"),)),
    "500": _status(500, b""),
    "503": _status(503, headers=(("Connection", "close"),)),
    "redirect": _status(307, b"", headers=(("Location", "/elsewhere"),)),
    "page of html": _fails("not a stream", answer=b"<html>hello", content_type="text/html"),
    "json, not a stream": _fails(
        "not a stream", answer=b'{"choices": [{"text": "x"}]}', content_type="application/json"
    ),
    "error object": _midway(b'data: {"error": {"message": "engine died"}}\n\n', "engine died"),
    "error object, done": _midway(
        b'data: {"error": {"message": "engine died"}}\n\ndata: [DONE]\n\n', "engine died"
    ),
    "error text": _midway(b'data: {"error": "engine died"}\n\n', "engine died"),
    "error of another shape": _midway(
        b'data: {"object": "error", "message": "out of memory", "code": 50001}\n\ndata: [DONE]\n\n',
        "out of memory",
    ),
    "error with detail": _midway(b'data: {"detail": "no more"}\n\ndata: [DONE]\n\n', "no more"),
    "error event, text": _midway(b"event: error\ndata: it broke\n\n", "it broke"),
    "error event, json": _midway(b'event: error\ndata: {"msg": "it broke"}\n\n', "it broke"),
    "finish error": _midway(
        b'data: {"choices": [{"delta": {}, "finish_reason": "error"}]}\n\ndata: [DONE]\n\n', "error"
    ),
    "finish abort": _midway(
        b'data: {"choices": [{"delta": {}, "finish_reason": "abort"}]}\n\ndata: [DONE]\n\n', "abort"
    ),
    "not json": _midway(b"data: {not json\n\n", "unreadable event"),
    "a list": _midway(b"data: []\n\n", "unreadable event"),
    "wrong types": _midway(b'data: {"choices": [3]}\n\n', "unreadable event"),
    "reset": _fails("reset", fault_at=3, fault="reset"),
    "ends within": _fails("broke off", fault_at=3, fault="fin"),
    "ends within, until close": _fails("broke off", fault_at=3, fault="fin", body="close"),
    "ends without a reason": _fails("broke off", finish="none", done="no"),
    "empty": _fails("empty output", tokens=0, finish="none", usage="none", role=False),
    "nothing at all": _fails("broke off", answer=b"", content_type="text/event-stream", raw=b""),
    "hangs": _fails("no answer after", fault_at=0, fault="hang"),
    "hangs within": _fails("no end of the answer after", fault_at=3, fault="hang"),
}
ERRORS["nothing at all"] = replace(ERRORS["nothing at all"], tokens=0, finish="none", done="no")
MODES: dict[str, Mode] = {**FRAMING, **TOKENS, **PLACES, **ERRORS}
