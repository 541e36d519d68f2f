"""The whole pass on a tiny model: invariants, pruned models, offloading, refusals."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from offline.calibration.calibrate import calibrate
from offline.calibration.scores import Scores
from offline.engines.local.transformers import TransformersEngine
from tests.calibration import naive
from tests.calibration.test_walk import domain, outputs_of, plain_inputs
from tests.sample_maps import uniform_map
from tests.tiny import make_tiny_mixtral, random_map
from vllm_moe_prune.errors import PruneError

DOMAINS = (domain("a", 5, vocab=128, length=32), domain("b", 3, vocab=128, length=32))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_mixtral(tmp_path_factory.mktemp("tiny") / "model", layers=3)


@pytest.fixture(scope="module")
def loaded(model: Path) -> TransformersEngine:
    return TransformersEngine(model, dtype="float32", tokens_per_batch=64)


@pytest.fixture
def engine(loaded: TransformersEngine) -> Iterator[TransformersEngine]:
    yield loaded
    loaded.apply(None)


@pytest.fixture(scope="module")
def scores(loaded: TransformersEngine) -> Scores:
    return calibrate(loaded, DOMAINS, gradients=True)


def everything(scores: Scores) -> dict[str, np.ndarray]:
    """Every array of the scores by a name."""
    found: dict[str, np.ndarray] = {}

    def add(name: str, value: Any) -> None:
        if hasattr(value, "__dataclass_fields__"):
            for entry in fields(value):
                add(f"{name}.{entry.name}", getattr(value, entry.name))
        elif value is not None:
            found[name] = np.asarray(value)

    for name, layers in scores.domains.items():
        for number, statistics in layers.items():
            add(f"{name}.{number}", statistics)
    for number, weights in scores.weights.items():
        add(f"weights.{number}", weights)
    return found


@torch.no_grad()
def test_the_statistics_are_those_of_a_plain_forward_pass(model: Path) -> None:
    """In float64: by the definitions, with everything in memory, every statistic of every layer."""
    exact = TransformersEngine(model, dtype="float32", tokens_per_batch=64)
    exact.model.double().set_experts_implementation("eager")  # the other one knows no float64
    scores = calibrate(exact, DOMAINS)
    assert list(scores.domains) == ["a", "b"] and list(scores.weights) == [0, 1, 2]
    for part in DOMAINS:
        ids = torch.from_numpy(part.token_ids)
        plain, _ = plain_inputs(exact.model, dict(exact.layers), ids)
        for number, control in exact.layers.items():
            hidden, chosen, weights = plain[number]
            logits = hidden @ control.router.weight.T
            outputs = [
                outputs_of(control, expert, hidden[(chosen == expert).any(1)]).numpy()
                for expert in range(8)
            ]
            expected = naive.Pass(
                vocab=128,
                token_ids=ids.flatten().numpy(),
                logits=logits.numpy(),
                scores=logits.softmax(-1).numpy(),
                weights=weights.numpy(),
                ids=chosen.numpy(),
                outputs=outputs,
            )
            seen = scores.domains[part.name][number]
            assert seen.counts.sum() == seen.tokens * 2 == ids.numel() * 2
            naive.assert_same(seen, naive.layer_statistics(expected), atol=1e-6)


def test_gradients_and_weights_are_of_the_experts_that_they_are_named_after(
    engine: TransformersEngine, scores: Scores
) -> None:
    engine.model.requires_grad_(True)
    for part in DOMAINS:
        engine.model.zero_grad()
        ids = torch.from_numpy(part.token_ids)
        logits = engine.model(input_ids=ids, use_cache=False).logits[:, :-1]
        torch.nn.functional.cross_entropy(
            logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="sum"
        ).backward()
        for number, control in engine.layers.items():
            found = scores.domains[part.name][number].gradient
            assert found is not None
            experts = control.experts
            squares = sum(
                weight.grad.double().flatten(1).square().sum(1)
                for weight in (experts.gate_up_proj, experts.down_proj)
            )
            np.testing.assert_allclose(found.norm, squares.sqrt().numpy(), rtol=1e-4)
            norms = sum(
                weight.detach().double().flatten(1).square().sum(1)
                for weight in (experts.gate_up_proj, experts.down_proj)
            )
            np.testing.assert_allclose(scores.weights[number].norm, norms.sqrt(), rtol=1e-6)
            gate = control.router.weight.detach().double().norm(dim=1)
            np.testing.assert_allclose(scores.weights[number].router_norm, gate, rtol=1e-6)
    engine.model.zero_grad()


def test_gradients_do_not_change_what_is_seen_forwards(
    engine: TransformersEngine, scores: Scores
) -> None:
    without = everything(calibrate(engine, DOMAINS))
    full = everything(scores)
    assert not any(".gradient." in name for name in without)
    assert set(without) == {name for name in full if ".gradient." not in name}
    assert all(np.array_equal(full[name], array) for name, array in without.items())


def test_batches_and_other_domains_play_no_part(
    engine: TransformersEngine, scores: Scores, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "tokens_per_batch", 4096)
    alone = everything(calibrate(engine, DOMAINS[1:]))
    both = everything(scores)
    assert all(name.startswith(("b.", "weights.")) for name in alone)
    for name, array in alone.items():
        np.testing.assert_allclose(
            array.astype(float), both[name].astype(float), rtol=1e-3, atol=1e-3, err_msg=name
        )


def test_a_pruned_model_is_scored_as_it_is(engine: TransformersEngine, model: Path) -> None:
    kept = [(5, 0, 2)] * 3
    engine.apply(uniform_map(model, kept))
    found = calibrate(engine, DOMAINS, gradients=True)
    usage_top_k = engine.applied.layers[0].top_k if engine.applied else 0
    assert found.shape.top_k == dict.fromkeys(range(3), usage_top_k)
    for layers in found.domains.values():
        for statistics in layers.values():
            dropped = [e for e in range(8) if e not in kept[0]]
            assert not statistics.counts[dropped].any() and statistics.counts[[0, 2, 5]].all()
            assert statistics.gradient is not None
            assert not statistics.gradient.norm[dropped].any()
            assert statistics.gradient.norm[[0, 2, 5]].all()


def test_merged_experts_cannot_be_scored(engine: TransformersEngine, model: Path) -> None:
    engine.apply(random_map(model, np.random.default_rng(0), kinds=("w_em",)))
    with pytest.raises(PruneError, match="merges or substitutes experts"):
        calibrate(engine, DOMAINS)


def test_too_long_sequences_are_refused(engine: TransformersEngine) -> None:
    with pytest.raises(PruneError, match="--length 600: the model takes at most 512 tokens"):
        calibrate(engine, [domain("long", 1, length=600)])


def test_a_full_disk_is_noticed_before_anything_is_computed(
    engine: TransformersEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import shutil

    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=10_000))
    with pytest.raises(PruneError, match="hidden states and outputs need"):
        calibrate(engine, DOMAINS, scratch=tmp_path)
    assert not list(tmp_path.iterdir())


def test_nothing_is_left_in_the_scratch_folder(engine: TransformersEngine, tmp_path: Path) -> None:
    stages: list[tuple[str, int]] = []
    steps: list[int] = []

    class Listening:
        def stage(self, title: str, total: int) -> None:
            stages.append((title, total))
            assert [path.name[:8] for path in tmp_path.iterdir()] == ["vmprune-"]

        def step(self, amount: int = 1, note: str = "") -> None:
            steps.append(amount)

    calibrate(engine, DOMAINS, gradients=True, scratch=tmp_path, reporter=Listening())
    assert stages == [("calibrating", 3), ("gradients", 3)]
    assert sum(steps) == 6 and not list(tmp_path.iterdir())


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_an_offloaded_model_gives_the_same_bits(model: Path, tmp_path: Path, dtype: Any) -> None:
    whole = TransformersEngine(model, dtype=dtype, tokens_per_batch=64)
    offloaded = TransformersEngine(model, dtype=dtype, tokens_per_batch=64, offload=tmp_path)
    layers = offloaded.model.model.layers
    assert all(weight.is_meta for weight in layers.parameters())
    expected = everything(calibrate(whole, DOMAINS, gradients=True))
    for _ in range(2):  # the layers are back on the disk afterwards, and can be read again
        found = everything(calibrate(offloaded, DOMAINS, gradients=True))
        assert set(found) == set(expected)
        different = [n for n, array in found.items() if not np.array_equal(array, expected[n])]
        assert different == []
        assert all(weight.is_meta for weight in layers.parameters())
    assert torch.equal(
        offloaded.logits(DOMAINS[0].token_ids.tolist()), whole.logits(DOMAINS[0].token_ids.tolist())
    )
