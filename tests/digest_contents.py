"""What of the files that commands leave must stay, as digests by name.

Only values are taken, in an order that is fixed here: what is renamed, sorted otherwise or added in
a file changes no digest, nor do versions, times and paths. Files are read with json and safetensors
alone, so that older states of the program can be asked as well.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import safe_open

Digests = dict[str, str]

_ROUTING_MAP = "routing_map.safetensors"
_IDENTITY = ("name", "split", "count", "sha256")
_TUNING = ("trainable", "parameters", "steps", "tokens", "learning_rate")
_POINT = ("evaluation", "phase", "fitness", "best", "complete", "items", "tokens")
_QUALITY = (
    *("variant", "split", "task", "measure", "accuracy", "low", "high", "items", "maps", "each"),
)
_LAYER = ("layer", "num_experts", "num_kept", "kept", "top_k", "router", "usage")
_CANDIDATE = ("phase", "generation", "number", "digest", "fitness", "complete", "tokens")
_ITEMS = ("split", "item", "correct", "margin", "prediction", "tokens")
_CELL = (*("subject", "mode", "task", "metric", "accuracy", "low", "high", "items", "in_format"),)


def scores(folder: Path) -> Digests:
    """Digest what `vmprune score` counted: one entry per statistic, over domains and layers."""
    return _by_kind(
        (re.sub(r"^(domains)/.+?/\d+/|^(weights)/\d+/", r"\1\2 ", name), name, value)
        for name, value in _arrays(folder / "scores.safetensors")
    )


def checkpoint(folder: Path) -> Digests:
    """Digest a checkpoint: one entry per kind of tensor, over layers and experts, and its config.

    What lies in a folder inside of it (the compact form) counts under that folder's name.
    """
    found = _by_kind(
        (re.sub(r"\.\d+\.", ".*.", name), name, value)
        for file in sorted(folder.rglob("*.safetensors"))
        if file.name != _ROUTING_MAP
        for name, value in _arrays(file, inside=file.parent.relative_to(folder))
    )
    config = json.loads((folder / "config.json").read_text())
    config.pop("transformers_version", None)
    return {**found, "config": _sha(config)}


def routing_map(folder: Path) -> Digests:
    """Digest a routing map: what it does and for which base, not who made it."""
    found = json.loads((folder / "routing_map.json").read_text())
    file = folder / _ROUTING_MAP
    matrices = dict(_arrays(file)) if file.exists() else {}

    def rows(selection: Mapping[str, Any] | None) -> Any:
        if selection is None or selection.get("kept") is not None:
            return selection and selection["kept"]
        return _array_sha(matrices[selection["matrix"]])

    layers = [
        [
            *_values(layer, ("layer", "num_experts", "num_kept", "top_k", "router")),
            rows(layer["experts"]),
            rows(layer.get("router_rows")),
        ]
        for layer in found["layers"]
    ]
    about = [
        _values(found, ("model_type", "num_groups")),
        _values(found["base"], ("config", "index", "routers")),
        found.get("tokens_seen"),
        [_tuning(one) for one in found.get("tuned", ())],
    ]
    return {"map": _sha(layers), "map's base, tokens and tunings": _sha(about)}


def result(folder: Path) -> Digests:
    """Digest the numbers of `vmprune compress`."""
    found = json.loads((folder / "vmprune_result.json").read_text())
    sizes = [
        _values(found[name], ("experts", "num_bytes", "expert_bytes"))
        for name in ("base_size", "pruned_size")
    ]
    about = _values(found, ("method", "fitness", "form", "summary", "map_digest"))
    digests = {
        "result": _sha([*about, *sizes, *_each(found["layers"], _LAYER)]),
        "search points": _sha(_each(found["search"], _POINT)),
        "quality": _sha(sorted(_each(found["quality"], _QUALITY), key=repr)),
    }
    if found.get("lottery"):
        digests |= _lottery(found["lottery"])
    return digests


def evaluations(run: Path) -> Digests:
    """Digest the log of a search: candidates, and evaluations outside of it, in their order."""
    lines = [json.loads(line) for line in (run / "evaluations.jsonl").read_text().splitlines()]
    candidates = [
        [*_values(line, _CANDIDATE), _results(line)]
        for line in lines
        if line["kind"] == "candidate"
    ]
    others = [
        [*_values(line, ("digest", "how", "limit")), _results(line)]
        for line in lines
        if line["kind"] == "evaluation"
    ]
    return {"candidates": _sha(candidates), "evaluations": _sha(others)}


def recovery(folder: Path) -> Digests:
    """Digest the numbers of `vmprune recover`."""
    found = json.loads((folder / "recovery.json").read_text())
    trained = [
        [one["subject"], _tuning(one["tuning"]), one["losses"], one["trained_bytes"]]
        for one in found["trained"]
    ]
    return {
        "recovery": _sha(_values(found, ("shots", "lessons", "left_out"))),
        "cells": _sha(sorted(_each(found["cells"], _CELL), key=repr)),
        "trained": _sha(trained),
    }


def _lottery(found: Mapping[str, Any]) -> Digests:
    digests = {f"lottery's {name}": _sha(_measured(found[name])) for name in ("base", "result")}
    for one in found["rounds"]:
        trained = one["trained"]
        content = [
            *_values(one, ("number", "criterion", "map_digest")),
            sorted((int(layer), ids) for layer, ids in one["kept"].items()),
            _measured(one["dropped"]),
            one["tuned"] and _measured(one["tuned"]),
            trained and _tuning(trained["tuning"]),
            trained and _values(trained, ("first_loss", "last_loss", "trained_bytes")),
        ]
        digests[f"round {one['number']}"] = _sha(content)
    return digests


def _measured(found: Mapping[str, Any]) -> list[Any]:
    names = ("layer", "experts", "tokens", "cv", "max_over_mean")
    return [sorted(found["losses"].items()), _each(found["load"], names)]


def _tuning(found: Mapping[str, Any]) -> list[Any]:
    return [*_values(found, _TUNING), sorted(_each(found["data"], _IDENTITY), key=repr)]


def _results(line: Mapping[str, Any]) -> list[Any]:
    return [[name, *_values(found, _ITEMS)] for name, found in sorted(line["results"].items())]


def _each(entries: list[Mapping[str, Any]], names: tuple[str, ...]) -> list[list[Any]]:
    return [_values(entry, names) for entry in entries]


def _values(entry: Mapping[str, Any], names: tuple[str, ...]) -> list[Any]:
    return [entry[name] for name in names]


def _arrays(file: Path, inside: Path = Path()) -> Iterator[tuple[str, np.ndarray[Any, Any]]]:
    """Yield a file's tensors by name, with the folder before it that the file lies in."""
    with safe_open(file, "np") as opened:
        for name in opened.keys():  # noqa: SIM118 - it is no mapping
            yield (inside / name).as_posix(), opened.get_tensor(name)


def _by_kind(found: Iterator[tuple[str, str, np.ndarray[Any, Any]]]) -> Digests:
    """Join the digests of arrays of one kind, in the order of their names."""
    kinds: dict[str, list[tuple[str, str]]] = {}
    for kind, name, value in found:
        kinds.setdefault(kind, []).append((name, _array_sha(value)))
    return {kind: _sha(sorted(arrays)) for kind, arrays in kinds.items()}


def _array_sha(value: np.ndarray[Any, Any]) -> str:
    head = f"{value.dtype.str} {value.shape} ".encode()
    return hashlib.sha256(head + np.ascontiguousarray(value).tobytes()).hexdigest()


def _sha(content: Any) -> str:
    """Digest plain values: floats are written so that they can be told apart by every bit."""
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()
