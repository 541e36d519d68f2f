"""An lm-evaluation-harness model on an OpenAI-compatible server: scores what is served."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import transformers
from lm_eval.models.openai_completions import LocalCompletionsAPI

from offline.engines.encoding import Encoder, TokenPair
from offline.engines.local.packing import group
from vllm_moe_prune.checkpoint import Checkpoint, read_config
from vllm_moe_prune.errors import PruneError
from vllm_moe_prune.routing_map import MAP_FILE, BaseFingerprint, RoutingMap

_LOOPBACK = {"127.0.0.1", "localhost", "::1"}
_AT_ONCE = 32  # requests in flight; the server batches them as it likes
_TIMEOUT = 600.0  # seconds of silence
_NEW_TOKENS = 256  # of a generation whose task sets no limit, as in lm-evaluation-harness
_DEFAULT_LENGTH = 2048  # of a model whose config does not say


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
        try:
            with _client(url) as client:
                cards = {card["id"]: card for card in _answer(client.get("/v1/models"))["data"]}
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

    def ask(self, bodies: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        """Send requests for completions of this model; return the answers in their order.

        :raises PruneError: if one fails, with what the server said
        """

        def post(body: dict[str, Any]) -> dict[str, Any]:
            reply = client.post("/v1/completions", json={"model": self.model, **body})
            answer: dict[str, Any] = _answer(reply)
            return answer

        with _client(self.url) as client, ThreadPoolExecutor(_AT_ONCE) as pool:
            try:
                return list(pool.map(post, bodies))
            except (httpx.HTTPError, ValueError) as error:
                pool.shutdown(cancel_futures=True)
                raise PruneError(f"{self.url} failed: {_reason(error)}") from None


class EndpointLM(Encoder):
    """Scores and generates over HTTP what the engines score and generate in process.

    Requests carry token ids of the engines' own encoding, and lm-evaluation-harness reads the
    answers. Its own client is not used: it encodes contexts otherwise, follows proxies to this
    machine, and repeats a refused request instead of saying why. ``tokens`` counts those sent and
    those generated.

    A prompt that is too long for the model loses its beginning, as in the engines, but two tokens
    sooner: a server that is asked for log-probabilities generates a token as well.

    :param own_length: tokens that the model can look at
    :raises PruneError: while running, if the server takes less and a prompt needs more
    """

    def __init__(self, endpoint: Endpoint, tokenizer: Any, own_length: int) -> None:
        served = endpoint.max_model_len or own_length
        super().__init__(tokenizer, min(own_length, served - 2))
        self.endpoint, self.own_length = endpoint, own_length

    @classmethod
    def connect(cls, url: str, folder: Path, model: str | None = None) -> EndpointLM:
        """Find the server and read the tokenizer of a checkpoint of the model that it serves.

        :param folder: the checkpoint served, or the base that it was made from
        :param model: as requests must spell it; None takes the first that is served
        :raises PruneError: if there is no such server, model or tokenizer, or the server says that
            it serves a checkpoint of another base
        """
        config = read_config(folder)
        tokenizer = _tokenizer(folder)
        endpoint = Endpoint.find(url, model)
        if endpoint.root is not None and (Path(endpoint.root) / "config.json").is_file():
            _check_same(folder, Path(endpoint.root), endpoint.url)
        text = config.get("text_config") or config  # a server may serve any family
        return cls(endpoint, tokenizer, int(text.get("max_position_embeddings", _DEFAULT_LENGTH)))

    def loglikelihood(
        self, requests: Sequence[Any], disable_tqdm: bool = True
    ) -> list[tuple[float, bool]]:
        """Return (log-likelihood in nats, whether greedy decoding gives it) of each request."""
        return self._score(self.encode_pairs([request.args for request in requests]))

    def _loglikelihood_tokens(
        self, requests: Sequence[tuple[Any, list[int], list[int]]], **_: Any
    ) -> list[tuple[float, bool]]:
        return self._score([(request[1], request[2]) for request in requests])

    def _score(self, pairs: Sequence[TokenPair]) -> list[tuple[float, bool]]:
        self._check_room(max(len(context) + len(rest) for context, rest in pairs) - 1)
        prompts: list[list[int]] = [[]] * len(pairs)
        begins = [0] * len(pairs)
        for question in group(pairs, self.max_length):  # cuts as the engines do
            for place, continuation in zip(question.places, question.continuations, strict=True):
                prompts[place] = [*question.context, *continuation]
                begins[place] = len(question.context)
        self.tokens += sum(map(len, prompts))
        form = {"echo": True, "logprobs": 1, "max_tokens": 1, "temperature": 0}
        answers = self.endpoint.ask([{"prompt": prompt, **form} for prompt in prompts])
        try:
            return [
                _checked(LocalCompletionsAPI.parse_logprobs(answer, ctxlens=[begin]))
                for answer, begin in zip(answers, begins, strict=True)
            ]
        except (LookupError, TypeError, AttributeError, ValueError):
            raise PruneError(
                f"{self.endpoint.url} does not give log-probabilities of prompts",
                hint="choices need a server with `echo` and `logprobs`, as vLLM is",
            ) from None

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = True) -> list[str]:
        """Return what greedy decoding gives after each context, up to its stop strings."""
        bodies = [self._generation(*request.args) for request in requests]
        texts = []
        for body, answer in zip(bodies, self.endpoint.ask(bodies), strict=True):
            try:
                (text,) = LocalCompletionsAPI.parse_generations(answer)
                self.tokens += len(body["prompt"]) + int(answer["usage"]["completion_tokens"])
            except (LookupError, TypeError, ValueError) as error:
                raise PruneError(f"{self.endpoint.url} gave no completion: {error!r}") from None
            texts.append(str(text))
        return texts

    def _generation(self, context: str, options: dict[str, Any]) -> dict[str, Any]:
        room = min(int(options.get("max_gen_toks", _NEW_TOKENS)), self.max_length - 1)
        self._check_room(len(self.tok_encode(context)) + room)
        until = options.get("until") or []
        return {
            "prompt": self.encode_text(context, room=room),
            "max_tokens": room,
            "stop": [until] if isinstance(until, str) else list(until),
            "temperature": 0,
            # vLLM takes this one from the model's generation_config.json; the engines know none.
            "repetition_penalty": 1.0,
        }

    def _check_room(self, needed: int) -> None:
        """Refuse to cut what the model could look at whole: scores would not be the engines'."""
        served = self.endpoint.max_model_len
        if served is not None and served < self.own_length and needed > self.max_length:
            raise PruneError(
                f"an item needs {needed + 2} tokens and {self.endpoint.url} takes {served}",
                hint=f"serve with --max-model-len {min(needed + 2, self.own_length)}",
            )


def base_of(folder: Path) -> BaseFingerprint:
    """Identify the base of a checkpoint: what its routing map says, or else the checkpoint itself.

    :raises PruneError: if the folder cannot be read
    """
    if (folder / MAP_FILE).is_file():
        return RoutingMap.load(folder).base
    return Checkpoint.open(folder).fingerprint()


def _check_same(folder: Path, served: Path, url: str) -> None:
    if not base_of(folder).matches(base_of(served)):
        raise PruneError(
            f"{url} serves {served}, which does not have the base of {folder}",
            hint="give --model the checkpoint that is served, or its base",
        )


def _tokenizer(folder: Path) -> Any:
    try:
        return transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise PruneError(f"no tokenizer in {folder}: {str(error).partition(chr(10))[0]}") from None


def _client(url: str) -> httpx.Client:
    key = os.environ.get("OPENAI_API_KEY")
    return httpx.Client(
        base_url=url,
        headers={"Authorization": f"Bearer {key}"} if key else {},
        timeout=_TIMEOUT,
        # A proxy cannot reach this machine's loopback.
        trust_env=urlsplit(url).hostname not in _LOOPBACK,
        limits=httpx.Limits(max_connections=_AT_ONCE),
    )


def _answer(reply: httpx.Response) -> Any:
    """Return the JSON of a reply.

    :raises ValueError: if it is none, or an error: with the server's own words
    """
    if not reply.is_error:
        return reply.json()
    try:
        said = str(reply.json()["error"]["message"])
    except (ValueError, LookupError, TypeError):
        said = reply.reason_phrase
    raise ValueError(f"status {reply.status_code}: {said}")


def _reason(error: Exception) -> str:
    return (str(error) or type(error).__name__).partition("\n")[0]


def _checked(parsed: list[tuple[float, bool]]) -> tuple[float, bool]:
    ((log_likelihood, greedy),) = parsed
    return float(log_likelihood), greedy
