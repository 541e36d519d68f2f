"""What a running OpenAI-compatible server serves."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from vllm_moe_prune.errors import PruneError

_LOOPBACK = {"127.0.0.1", "localhost", "::1"}


@dataclass(frozen=True, slots=True)
class ServerInfo:
    """A server's own account of itself; None where it does not say.

    ``max_model_len`` is in tokens. ``routing_map`` says in one line what the served folder's
    routing map does, when that folder is on this machine and holds one.
    """

    url: str
    models: tuple[str, ...]
    max_model_len: int | None
    version: str | None
    routing_map: str | None


def get_json(url: str, timeout: float = 10.0) -> Any:
    """The JSON that ``url`` answers with, None for an empty body.

    :raises OSError: if nobody answers or the status is not 2xx (``urllib.error.HTTPError``)
    :raises ValueError: if the answer is not JSON
    """
    # A proxy cannot reach this machine's loopback; urllib would use the environment's proxy for it.
    proxies: dict[str, str] | None = {} if urlsplit(url).hostname in _LOOPBACK else None
    opener = urllib.request.build_opener(urllib.request.ProxyHandler(proxies))
    with opener.open(url, timeout=timeout) as response:
        body = response.read()
    return json.loads(body) if body.strip() else None


def describe(url: str) -> ServerInfo:
    """Ask the server at ``url`` (without /v1) what it is.

    :raises PruneError: if nobody answers there, or no OpenAI-compatible endpoint
    """
    url = url.rstrip("/")
    try:
        cards = get_json(f"{url}/v1/models")["data"]
        models = tuple(str(card["id"]) for card in cards)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise PruneError(
            f"no OpenAI-compatible server at {url}: {error}",
            hint="give the address without /v1, for example http://127.0.0.1:8000",
        ) from error
    first = cards[0] if cards else {}
    return ServerInfo(
        url=url,
        models=models,
        max_model_len=first.get("max_model_len"),
        version=_version(url),
        routing_map=_map_summary(first.get("root")),
    )


def _version(url: str) -> str | None:
    try:
        return str(get_json(f"{url}/version")["version"])
    except (OSError, ValueError, KeyError, TypeError):
        return None  # only vLLM has this address


def _map_summary(root: str | None) -> str | None:
    if not root or not (Path(root) / "routing_map.json").is_file():
        return None
    from vllm_moe_prune.routing_map import RoutingMap

    routing_map = RoutingMap.load(Path(root))
    kept = sum(layer.num_kept for layer in routing_map.layers)
    total = sum(layer.num_experts for layer in routing_map.layers)
    return (
        f"{kept} of {total} experts in {len(routing_map.layers)} layers, {routing_map.form}, "
        f"{routing_map.digest()}"
    )
