"""What a batch would cost a GPU beside arithmetic, whatever the number of experts."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from benchmarks.launches import Launches, per_layer_and_batch
from offline.calibration import weights
from offline.calibration.accumulate import LayerAccumulator
from offline.calibration.expert_blocks import ExpertBlocks
from offline.calibration.weights import weight_statistics
from tests.calibration import naive
from tests.tiny import make_tiny_mixtral


def test_a_batch_of_many_experts_is_few_launches_and_waits(tmp_path: Path) -> None:
    """In the transformers engine, with the layer itself."""
    sizes = {"experts": 128, "top_k": 8, "layers": 1, "hidden": 64, "intermediate": 8}
    model = make_tiny_mixtral(tmp_path / "model", **sizes)
    found = per_layer_and_batch(model, 512, width=6 * 2048)  # as of 8192 tokens: 6 times the blocks
    assert 0 < found["launches"] <= 200, found
    assert 0 < found["waits"] <= 5, found


def test_experts_cost_no_launches_and_nothing_waits() -> None:
    counts = set()
    for experts in (8, 128):
        found = LayerAccumulator(experts, 4, 23, device="cpu")
        ids = torch.rand(100, experts).topk(8).indices
        logits, weights = torch.randn(100, experts), torch.rand(100, 8)
        with Launches() as seen:
            blocks = ExpertBlocks.of(ids, experts)
            found.add_routing(torch.zeros(100).long(), logits, logits, weights, ids)
            found.add_outputs(blocks, torch.randn(100, 8, 4), weights)
            found.count_outliers(blocks, torch.randn(100, 8, 4))
        assert seen.waits == 0
        counts.add(seen.count)
    assert len(counts) == 1 and counts.pop() <= 150


def test_weight_criteria_of_a_gpu_are_those_of_a_cpu_in_few_launches(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Where matrices go together: more of them are more copies, and nothing else."""
    generator = torch.Generator().manual_seed(0)
    fused = torch.randn(24, 3, 150, 140, generator=generator).unbind()
    experts, gate = [tuple(three.unbind()) for three in fused], torch.ones(24, 140)
    expected = weight_statistics(gate, experts)
    monkeypatch.setattr(weights, "_PIECE", {})
    naive.assert_same(weight_statistics(gate, experts), expected, rtol=1e-6)
    found = []
    for count in (12, 24):
        with Launches() as seen:
            weight_statistics(gate[:count], experts[:count])
        found.append(seen)
    few, many = found
    assert many.count <= 3000 and many.count - few.count < 12 * 3 * 3
    assert max(few.waits, many.waits) <= 3 * 8  # looks, one every eighth step


def test_what_waits_is_seen() -> None:
    rows = torch.arange(4.0)
    with Launches() as seen:
        float(rows.sum())
        rows[rows > 1]
        rows[rows > 1] = 0
        rows.nonzero()
    assert seen.waits == 4
