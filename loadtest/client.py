"""One streamed request against an OpenAI-compatible endpoint, timed."""

from __future__ import annotations

import email.utils
import http.client
import json
import math
import time
import zlib
from dataclasses import dataclass
from typing import Any, Literal

from loadtest.arrivals import ArrivalSocket
from loadtest.connection import Client
from loadtest.metrics import Record
from loadtest.sse import DONE, Event, EventParser, parse_delta
from loadtest.workload import Item

Kind = Literal["chat", "completion"]
PATHS: dict[Kind, str] = {"chat": "/v1/chat/completions", "completion": "/v1/completions"}
_AFTER_DONE_SECONDS = 0.5  # for the end of a body whose last event has come
_READ_BYTES = 1 << 16


class StreamError(Exception):
    """The server's answer is not what was asked for; the message says in which way."""


@dataclass(frozen=True, slots=True)
class Sampling:
    """How answers are generated; ``ignore_eos`` is vLLM's and makes every length max_tokens.

    ``continuous_usage``: ask for the count of tokens with every chunk (vLLM's, too).
    """

    temperature: float = 0.0
    seed: int = 0
    ignore_eos: bool = False
    continuous_usage: bool = False


def request_body(
    kind: Kind, model: str, item: Item, max_tokens: int, sampling: Sampling
) -> dict[str, Any]:
    """The JSON body of a streamed request."""
    body: dict[str, Any] = {
        "model": model,
        "max_tokens": max_tokens,
        "temperature": sampling.temperature,
        "seed": sampling.seed,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    # Not part of OpenAI's interface: other servers refuse fields that they do not know.
    if sampling.ignore_eos:
        body["ignore_eos"] = True
    if sampling.continuous_usage:
        body["stream_options"]["continuous_usage_stats"] = True
    if kind == "chat":
        body["messages"] = item.turns
    else:
        body["prompt"] = item.text
    return body


class Exchange:
    """A request on its way: `run` it, then take its ``record`` (also after an interruption).

    :param intended: Unix time at which it was to be sent; all times count from there
    :param cancel_after: seconds after which the user goes away
    """

    def __init__(
        self,
        client: Client,
        kind: Kind,
        body: dict[str, Any],
        *,
        index: int = 0,
        turn: int = 0,
        intended: float | None = None,
        cancel_after: float | None = None,
    ) -> None:
        self._client = client
        self._body = json.dumps(body).encode()
        self._intended = intended
        self._cancel_after = cancel_after
        self._arrivals: list[float] = []
        self._counts: list[int] = []
        self._finished = False
        self._tokens = 0  # as counted by the server so far
        self.text = ""
        self._fields: dict[str, Any] = {
            "kind": kind,
            "index": index,
            "turn": turn,
            "max_tokens": body.get("max_tokens"),
            "started": time.time(),
            "ended": 0.0,
        }
        self._clock = time.perf_counter()

    def run(self) -> None:
        """Send the request and read the answer to its end; a failure is kept in the record."""
        now = time.time()
        late = 0.0 if self._intended is None else max(0.0, now - self._intended)
        self._clock = time.perf_counter() - late
        self._fields.update(started=now - late, sent=late)
        whole = False
        try:
            whole = self._read()
        except TimeoutError:
            if not self._cancelled():
                self._fail(self._overdue())
        except http.client.IncompleteRead:
            self._fail("the stream broke off")
        except (OSError, http.client.HTTPException, StreamError, zlib.error) as error:
            self._fail(str(error) or type(error).__name__)
        except BaseException:  # the user was stopped, by locust or by hand
            self._fields["cut"] = True
            raise
        finally:
            if self._fields["ended"] == 0.0:
                self._fields["ended"] = self._now()
            if whole:
                self._client.keep()
            else:
                self._client.close()

    def _now(self) -> float:
        return time.perf_counter() - self._clock

    def _arrived(self, stream: Any) -> float:
        """When what was just read had come, which may be before it was read."""
        if isinstance(stream, ArrivalSocket):
            sent: float = self._fields["sent"]
            return max(stream.arrived - self._clock, sent)
        return self._now()

    def _fail(self, reason: str) -> None:
        self._fields["error"] = reason

    def _overdue(self) -> str:
        if self._arrivals:
            return f"no end of the answer after {self._client.timeout:g} s"
        return f"no answer after {self._client.timeout:g} s"

    def _read(self) -> bool:
        """Read the answer; return whether its body came to its end."""
        deadline = self._now() + self._client.timeout
        path = PATHS[self._fields["kind"]]
        patience = min(self._client.timeout, self._cancel_after or math.inf)
        response, stream, self._fields["opened"] = self._client.send(path, self._body, patience)
        self._fields["status"] = response.status
        if response.status != 200:
            self._refused(response)
            return True
        inflate = zlib.decompressobj(47) if response.headers.get("Content-Encoding") else None
        parser, done, said = EventParser(), False, b""
        while True:
            if not self._wait(stream, deadline, done):
                return False
            try:
                chunk = response.read1(_READ_BYTES)
            except (OSError, http.client.HTTPException):
                if done:  # all that was asked for has come
                    return False
                raise
            now = self._arrived(stream)
            if not chunk:
                break
            self._fields["num_bytes"] = self._fields.get("num_bytes", 0) + len(chunk)
            if not self._arrivals and len(said) < 300:
                said += chunk
            for event in parser.feed(inflate.decompress(chunk) if inflate else chunk):
                done = self._take(event, now) or done
        for event in [] if done else parser.end():
            done = self._last(event, self._now()) or done
        self._judge(done, response, said)
        return True

    def _wait(self, stream: Any, deadline: float, done: bool) -> bool:
        """Set how long the next read may take; False when the user has gone away."""
        left = deadline - self._now()
        if done:
            left = min(left, _AFTER_DONE_SECONDS)
        elif self._cancel_after is not None:
            if self._cancelled():
                return False
            left = min(left, self._cancel_after - self._now())
        if left <= 0:
            raise TimeoutError
        stream.settimeout(left)
        return True

    def _cancelled(self) -> bool:
        gone = self._cancel_after is not None and self._now() >= self._cancel_after
        if gone:
            self._fields["cancelled"] = True
        return gone

    def _refused(self, response: http.client.HTTPResponse) -> None:
        text = " ".join(response.read(2000).decode(errors="replace").split())
        response.read()
        self._fields["retry_after"] = _seconds(response.headers.get("Retry-After"))
        self._fail(f"HTTP {response.status}: {text[:200]}")

    def _last(self, event: Event, now: float) -> bool:
        """Take an event whose blank line never came; half of one says nothing."""
        try:
            return self._take(event, now)
        except StreamError:
            return False

    def _take(self, event: Event, now: float) -> bool:
        """Take one event; return whether it is the last."""
        if event.data.strip() == DONE:
            self._fields["ended"] = now
            return True
        try:
            delta = parse_delta(event)
        except (ValueError, AttributeError, TypeError, KeyError, IndexError) as error:
            said = event.data[:80].decode(errors="replace")
            raise StreamError(f"unreadable event: {said}") from error
        if delta.error is not None:
            raise StreamError(f"error in the stream: {delta.error}")
        counted = delta.output_tokens or 0
        if delta.choice:
            # A first count that comes with the end is no count of each chunk.
            more = counted > self._tokens and bool(self._tokens or not self._arrivals)
            textless = bool(self._arrivals) and not delta.opening and not delta.finish_reason
            if delta.output or more or textless:
                self._arrivals.append(now)
                if delta.output_tokens is not None:
                    self._counts.append(counted)
            if delta.answer and "answer" not in self._fields:
                self._fields["answer"] = now
            if delta.finish_reason:
                self._finished = True
                self._fields["finish_reason"] = delta.finish_reason
            if not delta.opening:
                self._fields["finished"] = now
            self.text += delta.text
        if delta.output_tokens is not None:
            self._tokens = counted
            self._fields["output_tokens"] = counted
            self._fields["prompt_tokens"] = delta.prompt_tokens
        return False

    def _judge(self, done: bool, response: http.client.HTTPResponse, said: bytes) -> None:
        kind = response.headers.get_content_type()
        if not self._arrivals and not self._finished and kind != "text/event-stream":
            told = " ".join(said[:200].decode(errors="replace").split())
            raise StreamError(f"not a stream but {kind}: {told}")
        if not done and not self._finished:
            raise StreamError("the stream broke off")
        if self._arrivals:
            return
        if not self._finished and not self._tokens:
            raise StreamError("empty output")
        # The first token was the end: it came with the event that says so.
        self._arrivals.append(self._fields.get("finished", self._fields["ended"] or self._now()))

    @property
    def record(self) -> Record:
        """What was measured."""
        whole = len(self._counts) == len(self._arrivals)
        return Record.model_construct(
            **self._fields,
            arrivals=tuple(self._arrivals),
            counts=tuple(self._counts) if whole else (),
        )


def _seconds(retry_after: str | None) -> float | None:
    """The seconds that a server asks to wait: a number, or a date."""
    if not retry_after:
        return None
    try:
        return max(0.0, float(retry_after))
    except ValueError:
        pass
    try:
        return max(0.0, email.utils.parsedate_to_datetime(retry_after).timestamp() - time.time())
    except ValueError:
        return None
