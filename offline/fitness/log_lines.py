"""Routing maps and results as small JSON values: what one line of the log holds."""

from __future__ import annotations

import base64
import zlib
from collections.abc import Mapping
from typing import Any

from offline.results.metrics import finite
from offline.tasks.results import ItemResult, TaskResult
from vllm_moe_prune.layer_map import Selection
from vllm_moe_prune.routing_map import RoutingMap


def map_to_json(routing_map: RoutingMap) -> list[dict[str, Any]]:
    """Return the map's layers; layers that are alike (a depth group) are written once.

    One-hot matrices are lists of kept ids. Others are base64 of the deflated little-endian
    float32 values [E', E]: exact, and short where most entries are zero. Of substituted experts a
    line has the ids and not the vectors, which are megabytes: the digest tells them apart.
    """
    entries: list[dict[str, Any]] = []
    numbers: list[list[int]] = []
    for layer in routing_map.layers:
        entry: dict[str, Any] = {
            "num_experts": layer.num_experts,
            "num_kept": layer.num_kept,
            "top_k": layer.top_k,
            "router": layer.router,
            "experts": _pack(layer.experts, routing_map),
        }
        if layer.router_rows is not None:
            entry["router_rows"] = _pack(layer.router_rows, routing_map)
        if layer.substituted is not None:
            entry["substituted"] = list(layer.constant_ids)
        if entry in entries:
            numbers[entries.index(entry)].append(layer.layer)
        else:
            entries.append(entry)
            numbers.append([layer.layer])
    return [{"layers": n, **entry} for n, entry in zip(numbers, entries, strict=True)]


def result_to_json(result: TaskResult) -> dict[str, Any]:
    """Return a result by columns rather than by items: a third of the length."""
    margins = [item.margin for item in result.items]
    return {
        "split": result.split,
        "item": [item.item for item in result.items],
        "correct": [_short(item.correct) for item in result.items],
        "margin": None if all(margin is None for margin in margins) else margins,
        "prediction": [item.prediction for item in result.items],
        "tokens": result.tokens,
        "seconds": result.seconds,
        **({"unfinished": result.unfinished} if result.unfinished else {}),
        **({"metrics": finite(result.metrics)} if result.metrics else {}),
        **({"source": result.source} if result.source else {}),
    }


def result_from_json(task: str, fields: Mapping[str, Any]) -> TaskResult:
    """Rebuild what `result_to_json` was given."""
    names = fields["item"]
    columns = (
        names,
        map(float, fields["correct"]),
        fields["margin"] or [None] * len(names),
        fields["prediction"],
    )
    items = tuple(ItemResult(*item) for item in zip(*columns, strict=True))
    return TaskResult(
        task,
        fields["split"],
        items,
        fields["tokens"],
        fields["seconds"],
        unfinished=fields.get("unfinished", 0),
        metrics=fields.get("metrics", {}),
        source=fields.get("source", ""),
    )


def _short(value: float) -> float:
    return int(value) if value == int(value) else value


def _pack(selection: Selection, routing_map: RoutingMap) -> list[int] | str:
    if selection.kept is not None:
        return list(selection.kept)
    assert selection.matrix is not None
    values = routing_map.matrices[selection.matrix].astype("<f4").tobytes()
    return base64.b64encode(zlib.compress(values, 9)).decode()
