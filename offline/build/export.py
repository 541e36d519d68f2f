"""A routing map for other tools: which experts it keeps, in a form that they read.

Only for maps that select: what merges experts or mixes their scores has no such form.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Literal

from offline.runs.owned import read_json
from vllm_moe_prune.errors import PruneError
from vllm_moe_prune.routing_map import RoutingMap

ExportFormat = Literal["kept-ids", "llm-compressor"]  # of a file
KEPT_IDS_VERSION = 1


def export(routing_map: RoutingMap, form: ExportFormat) -> str:
    """Return the content of the file, JSON with a newline at its end.

    :raises PruneError: if the map does more than keep experts, naming the layer
    """
    _check_selects(routing_map)
    return EXPORTS[form](routing_map)


def _kept_ids(routing_map: RoutingMap) -> str:
    """Decoder layer -> E, k and the old ids of the kept experts (docs/routing-map.md)."""
    head = {
        "format": "kept-ids",
        "version": KEPT_IDS_VERSION,
        "model_type": routing_map.model_type,
        "base": routing_map.base.model_dump(),
        "num_groups": routing_map.num_groups,
    }
    layers = {
        str(entry.layer): {
            "num_experts": entry.num_experts,
            "top_k": entry.top_k,
            "router": entry.router,
            "kept": entry.experts.kept,
        }
        for entry in sorted(routing_map.layers, key=lambda entry: entry.layer)
    }
    lines = ",\n    ".join(f'"{layer}": {json.dumps(one)}' for layer, one in layers.items())
    rest = json.dumps(head, indent=2).removesuffix("\n}")
    return f'{rest},\n  "layers": {{\n    {lines}\n  }}\n}}\n'


def _saliency(routing_map: RoutingMap) -> str:
    """The saliency report that llm-compressor's `ExpertPruner` reads: 1 is kept, 0 is dropped.

    One list of E numbers per layer with experts, in order of layers; the pruner drops the lowest.
    """
    rows = []
    for entry in sorted(routing_map.layers, key=lambda entry: entry.layer):
        kept = set(entry.experts.kept or ())
        rows.append([1.0 if expert in kept else 0.0 for expert in range(entry.num_experts)])
    lines = ",\n    ".join(json.dumps(row) for row in rows)
    return f'{{\n  "saliency": [\n    {lines}\n  ]\n}}\n'


EXPORTS: Mapping[ExportFormat, Callable[[RoutingMap], str]] = {
    "kept-ids": _kept_ids,
    "llm-compressor": _saliency,
}


def is_export(file: Path) -> bool:
    """Whether a file is one that `export` may replace: no more than what it writes."""
    fields = read_json(file)
    if not isinstance(fields, dict):
        return False
    if fields.get("format") == "kept-ids":
        return {"model_type", "base", "layers"} <= fields.keys()
    rows = fields.get("saliency")
    return len(fields) == 1 and isinstance(rows, list) and all(map(_is_choice, rows))


def _is_choice(row: object) -> bool:
    return isinstance(row, list) and all(score in (0.0, 1.0) for score in row)


def pruner_call(routing_map: RoutingMap, file: str) -> str:
    """Return the call with which llm-compressor drops just these experts."""
    before = sum(entry.num_experts for entry in routing_map.layers)
    after = sum(entry.num_kept for entry in routing_map.layers)
    uniform = len({(entry.num_experts, entry.num_kept) for entry in routing_map.layers}) == 1
    return (
        f"ExpertPruner.from_pretrained(BASE, sparsity={before - after} / {before}, "
        f'metric="saliency", uniform={uniform}, saliency_report_path="{file}")'
    )


def _check_selects(routing_map: RoutingMap) -> None:
    for entry in routing_map.layers:
        if entry.substituted is not None:
            raise PruneError(
                f"layer {entry.layer} substitutes experts, which is no list of kept ids",
                hint="--format approximate-experts, which vLLM 0.33 reads",
            )
        if entry.experts.kept is None or entry.router_selection.kept != entry.experts.kept:
            raise PruneError(
                f"layer {entry.layer} merges experts or mixes their scores, which is no list of "
                "kept ids",
                hint="build the checkpoint, or make a map that only prunes",
            )
    if routing_map.tuned:
        raise PruneError(
            "the weights beside this routing map were tuned after pruning; kept ids alone would "
            "make a model without that",
            hint="export the map that they were tuned from",
        )
