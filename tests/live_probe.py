"""Candidates in the live engine, asked for in the process of `tests.vllm_probe`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.vllm_probe import CACHE_BYTES, Answer, ask
from vllm_moe_prune.routing_map import RoutingMap


def probe_live(
    model: Path,
    pairs: Sequence[tuple[str, str]],
    maps: Sequence[RoutingMap | None],
    folder: Path,
    **arguments: Any,
) -> list[list[float]]:
    """Return the log-likelihoods of (context, continuation) pairs under one map after another.

    :param folder: that the maps go through
    :param arguments: of `VllmEngine`
    :raises RuntimeError: with what was said, if it does not answer
    """
    saved: list[str | None] = []
    for number, routing_map in enumerate(maps):
        saved.append(None if routing_map is None else str(folder / f"map-{number}"))
        if routing_map is not None:
            routing_map.save(folder / f"map-{number}")
    request = {"model": str(model), "pairs": pairs, "maps": saved, "arguments": arguments}
    recorded = not arguments.get("enforce_eager", True)
    return [values for _, (values,) in ask(request, None, alone=recorded)]


def live(
    model: str, pairs: list[tuple[str, str]], maps: list[str | None], arguments: dict[str, Any]
) -> list[Answer]:
    """Answer such a request."""
    from offline.engines.live.engine import VllmEngine
    from tests.engines.served import requests

    answers: list[Answer] = []
    with VllmEngine(Path(model), **{"kv_cache_bytes": CACHE_BYTES, **arguments}) as engine:
        for folder in maps:
            engine.apply(None if folder is None else RoutingMap.load(Path(folder)))
            found = engine._lm.loglikelihood(requests(*map(tuple, pairs)))
            answers.append(([], [[value for value, _ in found]]))
    return answers
