"""Maps for other tools: what they would do with the file is what the map says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from offline.build.export import EXPORTS, export, pruner_call
from tests.command import invoke, one_error, run
from tests.vllm_moe_prune.bare import BASE
from vllm_moe_prune.errors import PruneError
from vllm_moe_prune.layer_map import LayerMap, Selection
from vllm_moe_prune.provenance import Provenance
from vllm_moe_prune.routing_map import RoutingMap

KEPT = {10: (1, 3), 2: (0, 2, 3)}  # layers in any order


def map_of(**changes: Any) -> RoutingMap:
    layers = tuple(
        LayerMap(
            layer=layer,
            num_experts=4,
            num_kept=len(ids),
            top_k=2,
            experts=Selection(kept=ids),
            **changes,
        )
        for layer, ids in KEPT.items()
    )
    made = Provenance(method="by hand")
    return RoutingMap.build(model_type="mixtral", base=BASE, layers=layers, provenance=made)


def test_kept_ids_say_all_of_each_layer() -> None:
    read = json.loads(export(map_of(router="mapped"), "kept-ids"))
    assert read["layers"] == {
        "2": {"num_experts": 4, "top_k": 2, "router": "mapped", "kept": [0, 2, 3]},
        "10": {"num_experts": 4, "top_k": 2, "router": "mapped", "kept": [1, 3]},
    }
    assert read["base"] == BASE.model_dump()
    assert (read["format"], read["version"], read["num_groups"]) == ("kept-ids", 1, 1)


def test_the_lowest_of_a_saliency_report_are_the_dropped_experts() -> None:
    report = json.loads(export(map_of(), "llm-compressor"))
    assert list(report) == ["saliency"]
    rows = dict(zip(sorted(KEPT), report["saliency"], strict=True))  # by number, 2 before 10
    lowest = sorted((score, layer, i) for layer, row in rows.items() for i, score in enumerate(row))
    dropped = {(layer, expert) for _, layer, expert in lowest[: round(3 / 8 * 8)]}
    assert dropped == {(2, 1), (10, 0), (10, 2)}
    assert "sparsity=3 / 8" in pruner_call(map_of(), "r.json")
    assert "uniform=False" in pruner_call(map_of(), "r.json")


def test_maps_that_do_more_than_select_are_refused() -> None:
    merged = LayerMap(
        layer=5,
        num_experts=4,
        num_kept=2,
        top_k=2,
        experts=Selection(matrix="em"),
        router_rows=Selection(kept=(0, 1)),
    )
    routing_map = RoutingMap.build(
        model_type="mixtral",
        base=BASE,
        layers=(merged,),
        matrices={"em": [[0.5, 0.5, 0, 0], [0, 0, 0.5, 0.5]]},
        provenance=Provenance(method="by hand"),
    )
    for form in EXPORTS:
        with pytest.raises(PruneError, match="layer 5 merges experts or mixes their scores"):
            export(routing_map, form)


def test_the_command_writes_whole_files_and_never_over_others(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    map_of().save(tmp_path / "map")
    out = tmp_path / "kept.json"
    told = json.loads(invoke("export", tmp_path / "map", "--out", out, "--json").stdout)
    assert told == {
        "out": str(out),
        "format": "kept-ids",
        "digest": map_of().digest(),
        "call": None,
    }
    before = out.read_text()
    assert before == export(map_of(), "kept-ids")
    flags = ["--format", "llm-compressor", "--out", out]
    refused = run("export", tmp_path / "map", *flags, capsys=capsys)
    assert one_error(*refused) == f"{out} already exists"
    assert out.read_text() == before
    shown = invoke("export", tmp_path / "map", *flags, "--force").stdout
    assert f'saliency_report_path="{out}"' in shown
    assert out.read_text() == export(map_of(), "llm-compressor")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["kept.json", "map"]
