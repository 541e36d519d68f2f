"""A genome's map computes what a hand-made map of the same matrices computes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from offline.engines.local.transformers import TransformersEngine
from offline.maps.genome import Coefficients, Genome
from offline.maps.map_space import Space
from offline.maps.moe_shape import MoeShape
from tests.sample_maps import map_of
from tests.tiny import make_tiny_mixtral
from vllm_moe_prune.checkpoint import Checkpoint
from vllm_moe_prune.layer_map import LayerMap, Selection
from vllm_moe_prune.provenance import Provenance


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> TransformersEngine:
    folder = make_tiny_mixtral(tmp_path_factory.mktemp("methods") / "tiny", layers=3)
    return TransformersEngine(folder, dtype="float32")


def logits(engine: TransformersEngine, routing_map: object) -> torch.Tensor:
    engine.apply(routing_map)  # type: ignore[arg-type]
    return engine.logits([list(range(5, 37))])


def by_hand(folder: Path, coefficients: Coefficients, top_k: int) -> object:
    """Everything as matrices of each layer's own, nothing shared, sliced or sorted."""
    layers = [
        LayerMap(
            layer=layer,
            num_experts=8,
            num_kept=coefficients.rows,
            top_k=top_k,
            experts=Selection(matrix=f"w_em.{layer}"),
            router="mapped",
            router_rows=Selection(matrix=f"w_rm.{layer}"),
        )
        for layer in range(3)
    ]
    matrices = {f"w_em__{n}": coefficients.experts.copy() for n in range(3)}
    matrices |= {f"w_rm__{n}": coefficients.router.copy() for n in range(3)}
    return map_of(folder, layers, **matrices)


ONE_HOT = Coefficients.one_hot((6, 1, 3), 8).experts
NOISE = np.random.default_rng(0).normal(0, 0.1, (3, 8)).astype(np.float32)
PAIRS = {
    "one-hot": (ONE_HOT, ONE_HOT),
    "crossed": (ONE_HOT, ONE_HOT[[1, 2, 0]]),
    "mapped": (ONE_HOT, ONE_HOT + NOISE),
    "merged": (ONE_HOT + NOISE, ONE_HOT),
    "both": (ONE_HOT + NOISE, ONE_HOT - NOISE),
    "twice": (ONE_HOT[[0, 0, 1]], ONE_HOT),
}


@pytest.mark.parametrize("kind", PAIRS)
@pytest.mark.parametrize("top_k", [1, 2])
def test_a_genome_s_map_computes_what_its_matrices_say(
    kind: str, top_k: int, engine: TransformersEngine
) -> None:
    coefficients = Coefficients(*PAIRS[kind])
    space = Space.of(MoeShape.of(Checkpoint.open(engine.folder)), keep=3, top_k=top_k)
    genome = Genome((coefficients,))
    routing_map = space.genome_map(genome, space.groups(1), Provenance(method="eep"))
    expected = logits(engine, by_hand(engine.folder, coefficients, top_k))
    torch.testing.assert_close(logits(engine, routing_map), expected, atol=2e-4, rtol=1e-4)
    assert not torch.allclose(expected, logits(engine, None), atol=1e-2)


def test_the_identity_with_the_model_s_top_k_changes_nothing(engine: TransformersEngine) -> None:
    space = Space.of(MoeShape.of(Checkpoint.open(engine.folder)))
    assert dict(space.top_k) == {0: 2, 1: 2, 2: 2}
    identity = Genome.identity([8])
    routing_map = space.genome_map(identity, space.groups(1), Provenance(method="eep"))
    torch.testing.assert_close(logits(engine, routing_map), logits(engine, None))
    fewer = Space.of(MoeShape.of(Checkpoint.open(engine.folder)), top_k="0-1:1")
    assert dict(fewer.top_k) == {0: 1, 1: 1, 2: 2}
    lowered = fewer.genome_map(identity, fewer.groups(1), Provenance(method="eep"))
    assert not torch.allclose(logits(engine, lowered), logits(engine, None), atol=1e-2)
