"""Gradients taken layer by layer from files are those of one backward pass over everything."""

from __future__ import annotations

from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import pytest
import torch

from offline.calibration.gradients import enter_backwards, expert_matrices, step_back
from offline.calibration.walk import Walk, batches_of, by_domain
from offline.engines.local.experts import LayerControl, find_layers
from tests.calibration.families import FAMILIES, make
from tests.calibration.test_walk import DOMAINS, LENGTH
from tests.families.models import load, make_family
from vllm_moe_prune.checkpoint import read_config
from vllm_moe_prune.layouts import layout_of

Gradients = dict[tuple[str, int], tuple[torch.Tensor, ...]]


def by_layers(
    model: Any, controls: dict[int, LayerControl], folder: Path
) -> tuple[Gradients, float]:
    """Gradients of the fused weights by domain and layer, and the loss."""
    walk = Walk(model, batches_of(DOMAINS, 2 * LENGTH), folder)
    found: Gradients = {}
    with ExitStack() as stack:
        count = len(walk.layers)
        files = [stack.enter_context(closing(walk.file(f"hidden-{n}"))) for n in range(count + 1)]
        gradients = stack.enter_context(closing(walk.file("gradients")))
        walk.enter(files[0])
        with torch.no_grad():
            for number in range(count):
                walk.step(number, walk.batches, files[number], files[number + 1])
        loss = enter_backwards(walk, files[-1], gradients)
        for number in reversed(range(count)):
            for name, batches in by_domain(walk.batches):
                found[name, number] = step_back(
                    walk, number, batches, files[number], gradients, controls.get(number)
                )
    return found, loss


def plain_loss(model: Any, token_ids: torch.Tensor) -> torch.Tensor:
    logits = model(input_ids=token_ids, use_cache=False).logits[:, :-1]
    return torch.nn.functional.cross_entropy(
        logits.flatten(0, 1), token_ids[:, 1:].flatten(), reduction="sum"
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("family", FAMILIES)
def test_they_equal_a_plain_backward_pass(family: str, dtype: torch.dtype, tmp_path: Path) -> None:
    model, layout = make(family, dtype)
    controls = find_layers(model, layout)
    for parameter in model.parameters():  # as an engine may leave it
        parameter.requires_grad_(False)
    found, loss = by_layers(model, controls, tmp_path)
    assert not any(parameter.requires_grad for parameter in model.parameters())
    tolerance = 1e-5 if dtype == torch.float32 else 1e-10
    if family == "llama4":  # turns, norms and sigmoids are in float32 whatever the model is
        tolerance = 1e-5
    expected_loss = 0.0
    model.requires_grad_(True)
    for part in DOMAINS:
        model.zero_grad()
        value = plain_loss(model, torch.from_numpy(part.token_ids))
        value.backward()
        expected_loss += float(value.detach())
        for number, control in controls.items():
            experts = control.experts
            expected = (experts.gate_up_proj.grad, experts.down_proj.grad)
            for ours, theirs in zip(found[part.name, number], expected, strict=True):
                error = (ours - theirs).norm() / theirs.norm()
                assert error < tolerance, (part.name, number)
                assert ours.dtype == dtype
    assert loss == pytest.approx(expected_loss, rel=tolerance)
    assert all(found["a", n] == () for n in range(len(model.model.layers)) if n not in controls)


def test_bfloat16_is_summed_in_float32(tmp_path: Path) -> None:
    model, layout = make("mixtral", torch.bfloat16)
    found, _ = by_layers(model, find_layers(model, layout), tmp_path)
    assert all(gradient.dtype == torch.float32 for pair in found.values() for gradient in pair)


def test_an_experts_matrices_have_the_hidden_dimension_last() -> None:
    gate_up, down = torch.randn(3, 10, 4), torch.randn(3, 4, 5)
    experts = list(expert_matrices(gate_up, down))
    assert [[tuple(m.shape) for m in matrices] for matrices in experts] == [[(5, 4)] * 3] * 3
    gate, up, transposed = experts[1]
    assert torch.equal(torch.cat((gate, up)), gate_up[1])
    assert torch.equal(transposed.T, down[1])


def test_matrices_of_experts_that_are_laid_out_the_other_way() -> None:
    gate, up, down = (torch.randn(3, 5, 4) for _ in range(3))  # [E, I, D] each
    usual = list(expert_matrices(torch.cat([gate, up], dim=1), down.mT))
    taking_turns = torch.stack([gate, up], dim=2).flatten(1, 2).mT  # [E, D, 2I]
    other = list(expert_matrices(taking_turns, down, transposed=True, interleaved=True))
    for one, two in zip(usual, other, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "more"),
    [
        ("granitemoe", {"logits_scaling": 4.0}),
        ("gemma4_text", {"final_logit_softcapping": 2.0}),
        ("nemotron_h", {}),
        ("lfm2_moe", {}),
    ],
)
def test_whatever_comes_after_the_last_layer(
    family: str, more: dict[str, Any], tmp_path: Path
) -> None:
    """The last norm has a name of its own, logits are scaled or bent: the loss is the model's."""
    folder = make_family(family, tmp_path / "model", **more)
    model = load(folder)
    (tmp_path / "walk").mkdir()
    controls = find_layers(model, layout_of(read_config(folder)))
    _, loss = by_layers(model, controls, tmp_path / "walk")
    with torch.no_grad():
        parts = [plain_loss(model, torch.from_numpy(part.token_ids)) for part in DOMAINS]
    assert loss == pytest.approx(float(sum(parts)), rel=1e-5)
