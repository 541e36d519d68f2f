"""What a running OpenAI-compatible server serves."""

from __future__ import annotations

import json
import os
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from vllm_moe_prune.errors import PruneError
from vllm_moe_prune.reading import parse_json

_LOOPBACK = {"127.0.0.1", "localhost", "::1"}
_MOST = 1 << 24  # bytes of an answer


@dataclass(frozen=True, slots=True)
class ServerInfo:
    """A server's own account of itself; None where it does not say.

    ``max_model_len`` is in tokens. ``routing_map`` says in one line what the map of a pruned model
    does: as the plugin tells, or read from the served folder where that is on this machine.
    """

    url: str
    models: tuple[str, ...]
    max_model_len: int | None
    version: str | None
    routing_map: str | None


def get_json(url: str, timeout: float = 10.0, key: str | None = None) -> Any:
    """The JSON that ``url`` answers a GET with; the rest as `ask_json`."""
    return ask_json(url, timeout, key)


def ask_json(url: str, timeout: float, key: str | None, asked: Any = None) -> Any:
    """The JSON that ``url`` answers with, None for an empty body.

    :param key: the server's API key; not told to another address that it may send us to
    :param asked: what is posted, as JSON; nothing is a GET
    :raises OSError: if nobody answers or the status is not 2xx (``urllib.error.HTTPError``)
    :raises ValueError: if the answer is not JSON
    """
    # A proxy cannot reach this machine's loopback; urllib would use the environment's proxy for it.
    proxies: dict[str, str] | None = {} if urlsplit(url).hostname in _LOOPBACK else None
    opener = urllib.request.build_opener(urllib.request.ProxyHandler(proxies))
    request = urllib.request.Request(url)
    if asked is not None:
        request.data = json.dumps(asked).encode()
        request.add_header("Content-Type", "application/json")
    if key:
        request.add_unredirected_header("Authorization", f"Bearer {key}")
    with opener.open(request, timeout=timeout) as response:
        body = response.read(_MOST + 1)
    if len(body) > _MOST:
        raise PruneError(f"{url} answers with more than {_MOST >> 20} MiB")
    return parse_json(body, f"the answer of {url}") if body.strip() else None


def describe(url: str, key: str | None = None) -> ServerInfo:
    """Ask the server at ``url`` (without /v1) what it is.

    :param key: its API key; what VLLM_API_KEY holds if not given
    :raises PruneError: if nobody answers there, or no OpenAI-compatible endpoint
    """
    url, key = url.rstrip("/"), key or os.environ.get("VLLM_API_KEY")
    try:
        cards = get_json(f"{url}/v1/models", key=key)["data"]
        models = tuple(str(card["id"]) for card in cards)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise PruneError(
            f"no OpenAI-compatible server at {url}: {error}", hint=_hint(error)
        ) from error
    first = cards[0] if cards else {}
    return ServerInfo(
        url=url,
        models=models,
        max_model_len=first.get("max_model_len"),
        version=_version(url, key),
        routing_map=_told(first.get("pruning")) or _map_summary(first.get("root")),
    )


def _hint(error: Exception) -> str:
    if isinstance(error, urllib.error.HTTPError) and error.code in (401, 403):
        return "its key is read from VLLM_API_KEY"
    return "give the address without /v1, for example http://127.0.0.1:8000"


def _told(pruning: Any) -> str | None:
    """Say what the plugin put beside a model's name."""
    if not isinstance(pruning, dict):
        return None
    counts = f"{pruning.get('experts')} of {pruning.get('experts_of')} experts"
    return f"{counts}, {pruning.get('form')}, {pruning.get('routing_map')}"


def _version(url: str, key: str | None) -> str | None:
    try:
        return str(get_json(f"{url}/version", key=key)["version"])
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
