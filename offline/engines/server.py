"""One model on an OpenAI-compatible server: finding it, asking it."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar
from urllib.parse import urlsplit

import httpx

from offline.engines.replies import ReplyError, error_of
from vllm_moe_prune.errors import PruneError
from vllm_moe_prune.reading import parse_json

_LOOPBACK = {"127.0.0.1", "localhost", "::1"}
_AT_ONCE = 32  # requests in flight; the server batches them as it likes
_TIMEOUT = 600.0  # seconds of silence

Body = dict[str, Any]
Read = TypeVar("Read")


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One model of a server. ``url`` is without /v1; None where the server does not say.

    ``max_model_len`` is in tokens, prompt and answer together; ``root`` is the folder or the hub's
    name that the server loaded. The key is in OPENAI_API_KEY.
    """

    url: str
    model: str
    max_model_len: int | None
    root: str | None

    @classmethod
    def find(cls, url: str, model: str | None = None) -> Endpoint:
        """Ask the server at ``url`` what it serves.

        :param model: as requests must spell it; None takes the first
        :raises PruneError: if nobody answers there or no such model is served
        """
        url = url.rstrip("/").removesuffix("/v1")
        if "@" in url.partition("://")[2].partition("/")[0]:  # it would stand in results
            raise PruneError(
                "an address must not hold a password", hint="give the key in OPENAI_API_KEY"
            )
        try:
            with _client(url) as client:
                cards = {card["id"]: card for card in _json(client.get("/v1/models"))["data"]}
        except (httpx.HTTPError, httpx.InvalidURL, ValueError, LookupError, TypeError) as error:
            raise PruneError(
                f"no OpenAI-compatible server at {url}: {_reason(error)}",
                hint="give the address without /v1, for example http://127.0.0.1:8000",
            ) from None
        if not cards or (model is not None and model not in cards):
            raise PruneError(
                f"{url} does not serve {model!r}" if model else f"{url} serves no model",
                hint=f"it serves {', '.join(cards)}" if cards else None,
            )
        model = model or next(iter(cards))
        card = cards[model]
        return cls(url, model, card.get("max_model_len"), card.get("root"))

    def ask(
        self,
        path: str,
        questions: Sequence[tuple[Body, Callable[[Any], Read]]],
        *,
        patience: float = _TIMEOUT,
    ) -> list[Read]:
        """Send requests to this model; return what is read from the replies, in their order.

        The first reply that cannot be used ends it: the others are not waited for.

        :param path: below /v1
        :param questions: of each request the body and what reads the JSON of its reply
        :param patience: seconds of silence that a reply may take
        :raises PruneError: if a request fails or its reply is refused, with the reason
        """

        def post(question: tuple[Body, Callable[[Any], Read]]) -> Read:
            body, read = question
            return read(_json(client.post(f"/v1/{path}", json={"model": self.model, **body})))

        with _client(self.url, patience) as client, ThreadPoolExecutor(_AT_ONCE) as pool:
            try:
                return list(pool.map(post, questions))
            except ReplyError as error:
                pool.shutdown(cancel_futures=True)
                raise PruneError(f"{self.url} {_reason(error)}", hint=error.hint) from None
            except httpx.HTTPError as error:
                pool.shutdown(cancel_futures=True)
                raise PruneError(f"{self.url} failed: {_reason(error)}") from None
            except BaseException:  # interrupted: what was not yet sent need not be
                pool.shutdown(wait=False, cancel_futures=True)
                raise


def _client(url: str, patience: float = _TIMEOUT) -> httpx.Client:
    key = os.environ.get("OPENAI_API_KEY")
    return httpx.Client(
        base_url=url,
        headers={"Authorization": f"Bearer {key}"} if key else {},
        timeout=patience,
        # A proxy cannot reach this machine's loopback.
        trust_env=urlsplit(url).hostname not in _LOOPBACK,
        limits=httpx.Limits(max_connections=_AT_ONCE),
    )


def _json(reply: httpx.Response) -> Any:
    """Return the JSON of a reply.

    :raises ReplyError: if it is none, or an error: with the server's own words
    """
    try:
        found = parse_json(reply.content, "the reply")
    except PruneError:
        found = None
    if not reply.is_success:
        said = error_of(found) if isinstance(found, dict) else reply.reason_phrase
        raise ReplyError(f"failed: status {reply.status_code}: {said}")
    if found is None:
        kind = reply.headers.get("Content-Type", "something").partition(";")[0]
        raise ReplyError(f"replied with {kind}, not with JSON")
    return found


def _reason(error: Exception) -> str:
    return (str(error) or type(error).__name__).partition("\n")[0]
