from __future__ import annotations

from pathlib import Path

from tests.sample_maps import mixed_map
from tests.tiny import make_tiny_mixtral
from vllm_moe_prune.routing_map import RoutingMap


def test_maps_with_matrices_compare_by_what_they_say(tmp_path: Path) -> None:
    base = make_tiny_mixtral(tmp_path / "base", layers=4)
    first = mixed_map(base)
    first.save(tmp_path / "map")
    assert RoutingMap.load(tmp_path / "map") == first
    assert mixed_map(base, seed=1) != first
    assert first != "a map"
