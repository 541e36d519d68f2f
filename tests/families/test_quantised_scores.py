"""Quantised experts scored inside vLLM, against transformers with the dequantised weights.

With ``--matrix`` the outcomes are written into docs/families.md.

vLLM's CPU kernels round activations or compute in bfloat16, and a router that was rounded chooses
another expert for a few tokens. The unquantised model in bfloat16 shows how much that is by itself.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from offline.calibration.calibrate import calibrate
from offline.calibration.scores import Scores
from offline.engines.local.transformers import TransformersEngine
from tests.calibration import naive
from tests.calibration.test_walk import domain
from tests.families.matrix import Matrix
from tests.families.quantised import FORMATS, SERVED, config_of, quantise
from tests.families.test_scores import PARALLEL
from tests.tiny import make_tiny_mixtral
from tests.vllm_probe import probe_scores

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.slow,
    pytest.mark.skipif(
        not torch.cpu._is_amx_tile_supported(), reason="vLLM's CPU kernels need AMX"
    ),
]
# Two ranks have whole blocks of 128 each.
SIZES = {"hidden": 128, "intermediate": 256, "heads": 4, "kv_heads": 4}
TEXT = domain("a", 16, vocab=128, length=64)


@dataclass(frozen=True, slots=True)
class Noise:
    """Largest over the layers: the share of choices that differ, and of sums over an expert's
    tokens, per token, the mean relative difference over the experts."""

    choices: float
    norms: float
    deviations: float


def noise(found: Scores, expected: Scores) -> Noise:
    layers = [(found.domains["a"][n], seen) for n, seen in expected.domains["a"].items()]

    def apart(ours: np.ndarray, theirs: np.ndarray) -> float:
        return float((np.abs(ours - theirs) / np.abs(theirs)).mean())

    return Noise(
        choices=max(
            float(np.abs(one.counts - other.counts).sum() / other.counts.sum() / 2)
            for one, other in layers
        ),
        norms=max(apart(one.norms / one.counts, o.norms / o.counts) for one, o in layers),
        deviations=max(
            apart(one.deviations.sum(1) / one.counts, other.deviations.sum(1) / other.counts)
            for one, other in layers
        ),
    )


def scored(model: Path, out: Path, **arguments: Any) -> Scores:
    return probe_scores(model, {"a": TEXT.token_ids.tolist()}, out, dtype="bfloat16", **arguments)


@pytest.mark.parametrize("parallel", PARALLEL)
@pytest.mark.parametrize("name", ["bfloat16", *SERVED])
def test_scores_are_those_of_the_dequantised_weights(
    name: str, parallel: str, tmp_path: Path, matrix: Matrix
) -> None:
    model = make_tiny_mixtral(tmp_path / "original", dtype="bfloat16", **SIZES)
    if name != "bfloat16":
        model = quantise(model, tmp_path / "base", FORMATS[name], config_of(name))
    found = scored(model, tmp_path / "scores", **PARALLEL[parallel])
    expected = calibrate(TransformersEngine(model, dtype="float32"), [TEXT])
    seen = noise(found, expected)
    print(f"{name} {parallel}: {seen}")
    matrix.add(f"mixtral, {name}", "scores", parallel, seen.norms)
    assert seen.choices < 0.02 and seen.norms < 0.01 and seen.deviations < 0.02
    for layer, weights in expected.weights.items():
        naive.assert_same(found.weights[layer], weights, rtol=1e-3, atol=1e-4)
