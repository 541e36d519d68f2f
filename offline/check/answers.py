"""What a running server answers to a check's prompts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from serve.server import Server
from vllm_moe_prune.errors import PruneError
from vllm_moe_prune.reading import parse_json


@dataclass(frozen=True, slots=True)
class Answer:
    """Greedy tokens from the server with their log-probabilities."""

    tokens: tuple[int, ...]
    logprobs: tuple[float, ...]


def _post(server: Server, path: str, body: dict[str, Any]) -> Any:
    import httpx

    body = {"model": server.model_name, "temperature": 0, **body}
    try:
        # trust_env would send requests to this machine through a proxy
        reply = httpx.post(f"{server.url}{path}", json=body, timeout=600, trust_env=False)
        reply.raise_for_status()
        return parse_json(reply.content, f"the answer to {path}")["choices"][0]
    except httpx.HTTPError as error:
        raise PruneError(f"the server did not answer {path}: {error}") from None
    except (LookupError, TypeError):
        raise PruneError(f"the server's answer to {path} has no choices") from None


def continued(server: Server, prompt: Sequence[int], count: int) -> Answer:
    """Continue token ids greedily."""
    options = {"logprobs": 1, "return_tokens_as_token_ids": True}
    body = {"prompt": list(prompt), "max_tokens": count, **options}
    logprobs = _post(server, "/v1/completions", body)["logprobs"]
    tokens = tuple(int(token.removeprefix("token_id:")) for token in logprobs["tokens"])
    return Answer(tokens, tuple(float(value) for value in logprobs["token_logprobs"]))


def chat(server: Server, prompt: str, count: int) -> str:
    """Return what a chat answers to one message."""
    body = {"messages": [{"role": "user", "content": prompt}], "max_tokens": count}
    return str(_post(server, "/v1/chat/completions", body)["message"]["content"] or "")
