"""The engine against a naive reference: loops over tokens and experts, in float64."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file

from offline.engines.base import ExpertUse
from offline.engines.local.transformers import TransformersEngine
from tests.tiny import KINDS, make_tiny_mixtral, random_map
from vllm_moe_prune.errors import PruneError
from vllm_moe_prune.provenance import Provenance
from vllm_moe_prune.routing_map import RoutingMap

Array = np.ndarray[Any, np.dtype[np.float64]]


def naive_block(folder: Path, layer: int, routing_map: RoutingMap, x: Array) -> Array:
    """What the pruned MoE block of one layer must give for tokens x [T, D]."""
    stored = {k: v.astype(np.float64) for k, v in load_file(folder / "model.safetensors").items()}
    prefix = f"model.layers.{layer}.block_sparse_moe."
    entry = routing_map.by_layer()[layer]
    w_em, w_rm = routing_map.expert_matrix(entry), routing_map.router_matrix(entry)

    def merged(j: int, projection: str) -> Array:
        names = [f"{prefix}experts.{i}.{projection}.weight" for i in range(entry.num_experts)]
        return np.sum([w_em[j, i] * stored[name] for i, name in enumerate(names)], axis=0)

    y = np.zeros_like(x)
    for t, token in enumerate(x):
        logits = stored[prefix + "gate.weight"] @ token
        if entry.router == "sliced":
            rows = list(entry.router_selection.kept or ())
            scores = np.exp(logits[rows]) / np.exp(logits[rows]).sum()
        else:
            scores = w_rm @ (np.exp(logits) / np.exp(logits).sum())
        chosen = np.argsort(-scores)[: entry.top_k]
        for j in chosen:
            gate = merged(j, "w1") @ token
            hidden = gate / (1 + np.exp(-gate)) * (merged(j, "w3") @ token)
            y[t] += scores[j] / scores[chosen].sum() * (merged(j, "w2") @ hidden)
    return y


def blocks(engine: TransformersEngine, input_ids: torch.Tensor) -> list[tuple[Array, Array]]:
    """Input and output [T, D] of every MoE block while the engine computes logits."""
    seen: list[tuple[Array, Array]] = []

    def note(_: Any, given: Any, output: torch.Tensor) -> None:
        pair = (t.flatten(0, -2).double().numpy() for t in (given[0], output))
        seen.append(tuple(pair))  # type: ignore[arg-type]

    hooks = [layer.mlp.register_forward_hook(note) for layer in engine.model.model.layers]
    engine.logits(input_ids)
    for hook in hooks:
        hook.remove()
    return seen


@settings(
    max_examples=6,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(seed=st.integers(0, 2**32 - 1))
@pytest.mark.parametrize("kind", KINDS)
def test_map_gives_what_the_naive_loop_gives(
    kind: str, seed: int, engine: TransformersEngine, tiny: Path, input_ids: torch.Tensor
) -> None:
    routing_map = random_map(tiny, np.random.default_rng(seed), kinds=(kind,))
    engine.apply(routing_map)
    for layer, (given_x, y) in enumerate(blocks(engine, input_ids)):
        expected = naive_block(tiny, layer, routing_map, given_x)
        np.testing.assert_allclose(y, expected, atol=2e-4 * np.abs(expected).max())


@pytest.mark.parametrize("kind", KINDS)
def test_apply_none_restores_the_base_bit_by_bit(
    kind: str, engine: TransformersEngine, tiny: Path, input_ids: torch.Tensor
) -> None:
    before = engine.logits(input_ids)
    rng = np.random.default_rng(7)
    for _ in range(3):
        engine.apply(random_map(tiny, rng, kinds=(kind,), keep=2))
        assert not torch.equal(engine.logits(input_ids), before)
    engine.apply(None)
    assert torch.equal(engine.logits(input_ids), before)


def test_maps_do_not_leave_traces_in_one_another(
    engine: TransformersEngine, tiny: Path, input_ids: torch.Tensor
) -> None:
    rng = np.random.default_rng(1)
    first, second = random_map(tiny, rng, kinds=("w_em",)), random_map(tiny, rng)
    engine.apply(second)
    alone = engine.logits(input_ids)
    engine.apply(first)
    engine.apply(second)
    assert torch.equal(engine.logits(input_ids), alone)


def test_continuous_maps_in_a_row_share_one_copy_of_the_base(
    engine: TransformersEngine, tiny: Path, input_ids: torch.Tensor
) -> None:
    """Also with a one-hot map between them, which must see the base's experts again."""
    before = engine.logits(input_ids)
    rng = np.random.default_rng(5)
    maps = [random_map(tiny, rng, kinds=(kind,), keep=3) for kind in ("w_em", "w_em", "mapped")]
    alone = []
    for routing_map in maps:
        engine.apply(routing_map)
        alone.append(engine.logits(input_ids))
        engine.apply(None)
        assert not engine._layers[0]._pristine
    copies = set()
    for at in (0, 1, 2, 1, 0):
        engine.apply(maps[at])
        copies.add(engine._layers[0]._pristine["down_proj"].data_ptr())
        assert torch.equal(engine.logits(input_ids), alone[at])
    assert len(copies) == 1
    engine.apply(None)
    assert torch.equal(engine.logits(input_ids), before)


def test_keeping_all_experts_changes_nothing(
    engine: TransformersEngine, tiny: Path, input_ids: torch.Tensor
) -> None:
    before = engine.logits(input_ids)
    everything = random_map(tiny, np.random.default_rng(0), keep=8, kinds=("mapped",))
    layers = [layer.model_copy(update={"top_k": 2}) for layer in everything.layers]
    engine.apply(everything.model_copy(update={"layers": tuple(layers)}))
    torch.testing.assert_close(engine.logits(input_ids), before, atol=1e-5, rtol=1e-5)


def test_a_dropped_expert_gets_no_token(engine: TransformersEngine, tiny: Path) -> None:
    routing_map = RoutingMap.build(
        model_type="mixtral",
        base=engine.fingerprint,
        layers=[
            {"layer": 0, "num_experts": 8, "num_kept": 2, "top_k": 1, "experts": {"kept": [6, 3]}},
            {"layer": 1, "num_experts": 8, "num_kept": 8, "top_k": 3,
             "experts": {"kept": list(range(8))}, "router": "mapped"},
        ],
        provenance=Provenance(method="by hand"),
    )  # fmt: skip
    engine.apply(routing_map)
    uses = {n: ExpertUse(np.zeros(8, np.int64), np.zeros(8)) for n in engine._layers}
    for number, layer in engine._layers.items():
        layer.use = uses[number]
    engine.logits([list(range(5, 105))])
    for layer in engine._layers.values():
        layer.use = None
    assert uses[0].tokens.sum() == 100
    assert uses[0].tokens[[0, 1, 2, 4, 5, 7]].sum() == 0
    assert uses[1].tokens.sum() == 300
    assert [use.scores.sum() for use in uses.values()] == pytest.approx([100.0, 100.0], abs=1e-4)


def test_greedy_tokens_are_the_likeliest_ones(engine: TransformersEngine) -> None:
    (found,) = engine.greedy([[5, 6, 7]], max_new_tokens=4)
    log_probs = engine.logits([[5, 6, 7, *found.token_ids]])[0].log_softmax(-1)[2:-1]
    assert log_probs.argmax(-1).tolist() == list(found.token_ids)
    assert log_probs.max(-1).values.tolist() == pytest.approx(found.log_probs, abs=1e-5)


def test_engine_tells_its_expert_counts_and_fingerprint(
    engine: TransformersEngine, tiny: Path
) -> None:
    assert dict(engine.expert_counts) == {0: 8, 1: 8}
    assert engine.top_k == 2
    assert engine.fingerprint.matches(random_map(tiny, np.random.default_rng(0)).base)


def test_map_for_other_expert_counts_is_refused(engine: TransformersEngine, tmp_path: Path) -> None:
    other = make_tiny_mixtral(tmp_path / "m", experts=4)
    with pytest.raises(PruneError, match="4 experts in layer 0, the model has 8"):
        engine.apply(random_map(other, np.random.default_rng(0)))


def test_unsupported_family_is_refused_before_weights_are_read(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    with pytest.raises(PruneError, match="'llama' is not supported"):
        TransformersEngine(tmp_path)


def test_compact_checkpoint_is_refused(tiny: Path, tmp_path: Path) -> None:
    folder = make_tiny_mixtral(tmp_path / "m")
    random_map(tiny, np.random.default_rng(0), kinds=("w_rm",)).save(folder)
    with pytest.raises(PruneError, match="only vLLM can open"):
        TransformersEngine(folder)


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="nothing says what is mapped")
def test_no_file_of_a_model_stays_mapped(tmp_path: Path) -> None:
    """Of one that shrinks while it is mapped the system would end the process."""
    folder = make_tiny_mixtral(tmp_path / "model")
    engine = TransformersEngine(folder, device="cpu", dtype="float32")
    assert str(folder) not in Path("/proc/self/maps").read_text()
    os.truncate(folder / "model.safetensors", 8)
    assert all(bool(value.isfinite().all()) for value in engine.model.parameters())
