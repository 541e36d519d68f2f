"""One streamed request against an OpenAI-compatible endpoint, timed."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any, Literal
from urllib.parse import urlsplit

import httpx

from loadtest.metrics import Record
from loadtest.sse import DONE, events, parse_delta
from loadtest.workload import Item

Kind = Literal["chat", "completion"]
PATHS: dict[Kind, str] = {"chat": "/v1/chat/completions", "completion": "/v1/completions"}
_LOOPBACK = {"127.0.0.1", "localhost", "::1"}


class StreamError(Exception):
    """The server's answer is not what was asked for; the message says in which way."""


@dataclass(frozen=True, slots=True)
class Sampling:
    """How answers are generated; ``ignore_eos`` is vLLM's and makes every length max_tokens."""

    temperature: float = 0.0
    seed: int = 0
    ignore_eos: bool = False


def open_client(host: str, api_key: str | None = None, timeout: float = 600.0) -> httpx.Client:
    """An HTTP client for ``host``; ``timeout`` in seconds is for the silence between chunks."""
    headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
    # A proxy cannot reach this machine's loopback.
    trust_env = urlsplit(host).hostname not in _LOOPBACK
    return httpx.Client(
        base_url=host.rstrip("/").removesuffix("/v1"),
        headers=headers,
        timeout=timeout,
        trust_env=trust_env,
        # Reading the certificates takes longer than a request, and plain HTTP needs none.
        verify=not host.startswith("http://"),
    )


def discover_model(client: httpx.Client) -> str:
    """Name of the first model that the endpoint serves.

    :raises StreamError: if it names none
    :raises httpx.HTTPError: if nobody answers or the status is an error
    """
    answer = client.get("/v1/models").raise_for_status()
    try:
        return str(answer.json()["data"][0]["id"])
    except (ValueError, KeyError, IndexError, TypeError) as error:
        raise StreamError("the endpoint names no model") from error


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
    # Not part of OpenAI's interface: other servers refuse a field that they do not know.
    if sampling.ignore_eos:
        body["ignore_eos"] = True
    if kind == "chat":
        body["messages"] = item.turns
    else:
        body["prompt"] = item.text
    return body


class Exchange:
    """A request on its way: `run` it, then take its ``record`` (also after an interruption)."""

    def __init__(self, client: httpx.Client, kind: Kind, body: dict[str, Any]) -> None:
        self._client = client
        self._kind = kind
        self._body = body
        self._arrivals: list[float] = []
        self._finished = False
        self._prompt_tokens: int | None = None
        self._output_tokens: int | None = None
        self._error: str | None = None
        self._cut = False
        self._started = time.time()
        self._clock = time.perf_counter()
        self._ended = 0.0

    def run(self) -> None:
        """Send the request and read the answer to its end; a failure is kept in the record."""
        self._started, self._clock = time.time(), time.perf_counter()
        try:
            self._read()
        except (httpx.HTTPError, StreamError) as error:
            self._error = str(error) or type(error).__name__
        except BaseException:  # the user was stopped, by locust or by hand
            self._cut = True
            raise
        finally:
            self._ended = time.perf_counter() - self._clock

    def _read(self) -> None:
        path = PATHS[self._kind]
        with self._client.stream("POST", path, json=self._body) as response:
            if response.status_code != 200:
                text = response.read().decode(errors="replace").strip()
                raise StreamError(f"HTTP {response.status_code}: {text[:200]}")
            for data in events(response.iter_bytes()):
                if data == DONE:
                    self._finished = True
                    break
                self._take(data)
        if not self._finished:
            raise StreamError("the stream broke off")
        if not self._arrivals:
            raise StreamError("empty output")

    def _take(self, data: str) -> None:
        try:
            delta = parse_delta(data)
        except (ValueError, AttributeError, TypeError) as error:
            raise StreamError(f"unreadable event: {data[:80]}") from error
        if delta.error is not None:
            raise StreamError(f"error in the stream: {delta.error}")
        if delta.text:
            self._arrivals.append(time.perf_counter() - self._clock)
        if delta.output_tokens is not None:
            self._prompt_tokens = delta.prompt_tokens
            self._output_tokens = delta.output_tokens

    @property
    def record(self) -> Record:
        """What was measured."""
        return Record(
            kind=self._kind,
            started=self._started,
            arrivals=tuple(self._arrivals),
            ended=self._ended,
            prompt_tokens=self._prompt_tokens,
            output_tokens=self._output_tokens,
            error=self._error,
            cut=self._cut,
        )
