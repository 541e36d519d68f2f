"""Llama-4's dense MoE blocks, made sparse: the same results, and the routing can be seen."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from offline.calibration.calibrate import calibrate
from offline.engines.local.experts import find_layers
from offline.engines.local.packing import Question, build, pack
from offline.engines.local.reconstruction import Discrepancy
from offline.engines.local.scoring import target_log_probs
from offline.engines.local.transformers import TransformersEngine
from offline.finetune.settings import FinetuneSettings
from offline.finetune.trainable import merged, with_adapters
from tests.calibration.families import make
from tests.calibration.test_calibrate import everything
from tests.calibration.test_walk import domain
from tests.families.models import make_family
from tests.sample_maps import uniform_map
from tests.tiny import make_tiny_mixtral

IDS = torch.tensor([[3, 14, 15, 9, 26, 5, 35, 8], [9, 7, 9, 3, 2, 38, 46, 2]])


@pytest.fixture(scope="module", params=["llama4_text", "llama4"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Llama-4 with a tokenizer, of both forms."""
    from transformers import AutoTokenizer

    tmp = tmp_path_factory.mktemp(request.param)
    tokenizer = AutoTokenizer.from_pretrained(make_tiny_mixtral(tmp / "tiny"))
    base = make_family(request.param, tmp / "base", vocab_size=len(tokenizer))
    tokenizer.save_pretrained(base)
    return base


def backward(model: Any) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Logits and the gradients of everything."""
    model.zero_grad()
    logits = model(input_ids=IDS, use_cache=False).logits
    torch.nn.functional.cross_entropy(logits.flatten(0, 1), IDS.flatten()).backward()
    return logits.detach(), {name: p.grad.clone() for name, p in model.named_parameters()}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_results_and_gradients_are_those_of_transformers(dtype: torch.dtype) -> None:
    model, layout = make("llama4", dtype)
    logits, gradients = backward(model)
    names, forwards = set(model.state_dict()), {m: type(m).forward for m in model.modules()}
    controls = find_layers(model, layout)
    assert sorted(controls) == [1, 2] and set(model.state_dict()) == names
    changed = [m for m, forward in forwards.items() if type(m).forward is not forward]
    assert len(changed) == 3 * len(controls)
    found, ours = backward(model)
    torch.testing.assert_close(found, logits, rtol=1e-5, atol=1e-5)
    for name, gradient in gradients.items():
        assert gradient.any() and (ours[name] - gradient).norm() < 1e-4 * gradient.norm(), name


def test_a_block_is_changed_once() -> None:
    model, layout = make("llama4")
    find_layers(model, layout)
    kinds = [type(module) for module in model.modules()]
    find_layers(model, layout)
    assert [type(module) for module in model.modules()] == kinds


def test_other_blocks_are_left_alone() -> None:
    model, layout = make("mixtral")
    kinds = [type(module) for module in model.modules()]
    find_layers(model, layout)
    assert [type(module) for module in model.modules()] == kinds


@torch.no_grad()
def test_the_loss_of_a_subset_is_the_blocks_own() -> None:
    """NAEE's measure against the block run with and without the other experts."""
    model, layout = make("llama4", torch.float32)
    control = find_layers(model, layout)[1]
    hidden = torch.randn(9, 32, generator=torch.Generator().manual_seed(3))
    subsets = [(0, 2, 3), (1, 4, 5)]
    measured = Discrepancy.of(control, subsets, 2, 2)
    measured.add(hidden)
    full, _ = control.block(hidden)
    kept = torch.ones(6, dtype=torch.bool)
    weight: Any = control.router.weight
    for subset, squared in zip(subsets, measured.squared, strict=True):
        kept[:] = False
        kept[list(subset)] = True
        own = torch.nn.functional.linear(hidden, weight).masked_fill(~kept, float("-inf"))
        best, ids = own.topk(2, dim=-1)
        pruned = control.experts(hidden, ids, best.sigmoid())
        shared: Any = control.block.shared_expert
        expected = (full - shared(hidden) - pruned).double().square().sum()
        assert float(squared) == pytest.approx(float(expected), rel=1e-4)


def test_an_adapter_is_merged_into_transformers_own_blocks() -> None:
    model, _ = make("llama4", torch.float32)
    adapted = with_adapters(model, FinetuneSettings(trainable="lora", lora_rank=3), seed=0)
    with torch.no_grad():
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape) * 0.05)
    wanted = adapted(input_ids=IDS).logits
    torch.testing.assert_close(merged(adapted)(input_ids=IDS).logits, wanted, atol=1e-4, rtol=1e-4)


def test_scores_of_a_whole_an_offloaded_and_a_pruned_model(folder: Path, tmp_path: Path) -> None:
    domains = (domain("a", 3, vocab=128, length=32),)
    engine = TransformersEngine(folder, dtype="float32", tokens_per_batch=64)
    scores = calibrate(engine, domains, gradients=True)
    assert scores.shape.slices and scores.shape.top_k == dict.fromkeys(range(3), 1)
    seen = everything(scores)
    assert all(np.isfinite(array.astype(float)).all() for array in seen.values())
    for layer in scores.domains["a"].values():
        used, gradient = layer.counts > 0, layer.gradient
        assert gradient is not None and np.array_equal(gradient.norm > 0, used)
    offloaded = TransformersEngine(
        folder, dtype="float32", tokens_per_batch=64, offload=tmp_path / "offload"
    )
    found = everything(calibrate(offloaded, domains, gradients=True))
    for name, array in seen.items():  # rounding in a backward pass depends on where weights lie
        rounding = 1e-6 * np.abs(array).max() if ".gradient." in name else 0.0
        np.testing.assert_allclose(found[name], array, rtol=0.0, atol=rounding, err_msg=name)
    engine.apply(uniform_map(folder, [(5, 0, 2)] * 3, top_k=1))
    for layer in calibrate(engine, domains).domains["a"].values():
        assert layer.counts[[0, 2, 5]].sum() == layer.tokens


@torch.no_grad()
def test_questions_packed_into_a_row_are_scored_as_alone(folder: Path) -> None:
    """Also in a layer without positions, and before attention is cut into chunks."""
    engine = TransformersEngine(folder, dtype="float32")
    ids = torch.randint(3, 60, (3, 20), generator=torch.Generator().manual_seed(0)).tolist()
    questions = [
        Question(tuple(row[: 9 + n]), (tuple(row[12:]), tuple(row[9:11])), (2 * n, 2 * n + 1))
        for n, row in enumerate(ids)
    ]
    (rows,) = pack(questions, 512)
    batch = build(rows, torch.device("cpu"))
    assert len(batch.input_ids) == 1  # one row
    found, _ = target_log_probs(batch, engine._scorer.forward(batch))
    parts = torch.split(found, batch.lengths)
    for place, ours in zip(batch.places, parts, strict=True):
        question = questions[place // 2]
        context, continuation = question.context, question.continuations[place % 2]
        logits = engine.logits([[*context, *continuation]])[0, len(context) - 1 : -1]
        expected = logits.log_softmax(dim=-1).gather(1, torch.tensor(continuation)[:, None])
        torch.testing.assert_close(ours.float(), expected[:, 0], rtol=0, atol=1e-4)
