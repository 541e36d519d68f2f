"""The layer-by-layer pass is the plain forward pass, and sees what the experts really did."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from offline.calibration.corpus import Domain
from offline.calibration.hidden import HiddenStates
from offline.calibration.walk import Walk, batches_of, by_domain
from offline.calibration.watch import watching
from offline.engines.local.experts import LayerControl, decoder_of, find_layers
from tests.calibration.families import FAMILIES, make
from vllm_moe_prune.provenance import DataIdentity

LENGTH = 12


def domain(name: str, sequences: int, *, vocab: int = 60, length: int = LENGTH) -> Domain:
    rng = np.random.default_rng(sum(name.encode()))
    identity = DataIdentity(name=name, count=sequences, sha256="")
    return Domain(name, rng.integers(1, vocab, (sequences, length)), identity)


DOMAINS = (domain("a", 5), domain("b", 3))


class Everything:
    """An accumulator that keeps all it is given."""

    def __init__(self) -> None:
        self.routing: list[tuple[torch.Tensor, ...]] = []
        self.outputs: list[tuple[torch.Tensor, torch.Tensor]] = []

    def add_routing(self, *given: torch.Tensor) -> None:
        self.routing.append(given)

    def add_outputs(self, ids: torch.Tensor, outputs: torch.Tensor, weights: torch.Tensor) -> None:
        assert torch.equal(ids, self.routing[-1][-1])
        self.outputs.append((outputs, weights))


def outputs_of(control: LayerControl, expert: int, hidden: torch.Tensor) -> torch.Tensor:
    """What one gated expert with SiLU gives, written out."""
    gate_up, down = control.experts.gate_up_proj[expert], control.experts.down_proj[expert]
    if control.layout.weights_on_input:  # Llama-4 has its matrices the other way
        gate_up, down = gate_up.T, down.T
    gate, up = (hidden @ gate_up.T).chunk(2, dim=-1)
    result: torch.Tensor = (torch.nn.functional.silu(gate) * up) @ down.T
    return result


def plain_inputs(
    model: Any, controls: dict[int, LayerControl], ids: torch.Tensor
) -> tuple[dict[int, tuple[torch.Tensor, ...]], Any]:
    """What the experts of each layer are given in a plain forward pass, and its output."""
    seen: dict[int, tuple[torch.Tensor, ...]] = {}

    def hook(number: int) -> Any:
        return lambda _, given: seen.__setitem__(number, given)

    hooks = [c.experts.register_forward_pre_hook(hook(n)) for n, c in controls.items()]
    with torch.no_grad():
        output = model(input_ids=ids, use_cache=False, output_hidden_states=True)
    for handle in hooks:
        handle.remove()
    return seen, output


@pytest.mark.parametrize("family", FAMILIES)
def test_every_layer_equals_a_plain_forward_pass(family: str, tmp_path: Path) -> None:
    model, layout = make(family)
    controls = find_layers(model, layout)
    walk = Walk(model, batches_of(DOMAINS, tokens_per_batch=2 * LENGTH), tmp_path)
    assert [len(batch.token_ids) for batch in walk.batches] == [2, 2, 1, 2, 1]
    with closing(walk.file("hidden")) as file, torch.no_grad():
        walk.enter(file)
        found = [[file.read(b.number, walk.device) for b in walk.batches]]
        for number in range(len(walk.layers)):
            if number in controls:
                with watching(controls[number]) as watch:
                    watch.accumulator = Everything()
                    walk.step(number, walk.batches, file, file, before=watch.expect)
            else:
                walk.step(number, walk.batches, file, file)
            found.append([file.read(b.number, walk.device) for b in walk.batches])
    for batch in walk.batches:
        _, plain = plain_inputs(model, controls, batch.token_ids)
        states = list(plain.hidden_states[:-1])  # the last one is after the final norm
        for ours, theirs in zip(found, states, strict=False):
            torch.testing.assert_close(ours[batch.number], theirs, rtol=1e-10, atol=1e-12)
        last = decoder_of(model).norm(found[-1][batch.number])
        torch.testing.assert_close(model.lm_head(last), plain.logits, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_seen_is_the_models_own_routing_and_its_experts_outputs(
    family: str, tmp_path: Path
) -> None:
    model, layout = make(family)
    controls, top_k = find_layers(model, layout), FAMILIES[family][1]
    walk = Walk(model, batches_of(DOMAINS, tokens_per_batch=2 * LENGTH), tmp_path)
    seen: dict[tuple[str, int], Everything] = {}
    with closing(walk.file("hidden")) as file, torch.no_grad():
        walk.enter(file)
        for number in range(len(walk.layers)):
            if number not in controls:
                walk.step(number, walk.batches, file, file)
                continue
            with watching(controls[number]) as watch:
                for name, batches in by_domain(walk.batches):
                    watch.accumulator = seen[name, number] = Everything()
                    walk.step(number, batches, file, file, before=watch.expect)
    for part in DOMAINS:
        token_ids = torch.from_numpy(part.token_ids)
        plain, _ = plain_inputs(model, controls, token_ids)
        for number, control in controls.items():
            found = seen[part.name, number]
            ids, logits, scores, weights, chosen = (
                torch.cat(column) for column in zip(*found.routing, strict=True)
            )
            hidden, plain_chosen, plain_weights = plain[number]
            assert chosen.shape == (token_ids.numel(), top_k)
            assert torch.equal(ids, token_ids.flatten())
            assert torch.equal(chosen, plain_chosen)
            torch.testing.assert_close(weights, plain_weights, rtol=1e-6, atol=1e-9)
            as_score = torch.sigmoid if layout.score == "sigmoid" else lambda x: x.softmax(-1)
            torch.testing.assert_close(scores.double(), as_score(logits.double()))
            outputs, own_weights = (torch.cat(one) for one in zip(*found.outputs, strict=True))
            assert outputs.shape == (*chosen.shape, hidden.shape[1])
            for expert in range(control.num_experts):
                rows, slots = torch.where(plain_chosen == expert)
                before, after = plain_weights.new_ones(len(rows)), plain_weights[rows, slots]
                if layout.weights_on_input:
                    before, after = after, before
                expected = outputs_of(control, expert, hidden[rows] * before[:, None])
                torch.testing.assert_close(outputs[rows, slots], expected)
                torch.testing.assert_close(own_weights[rows, slots], after)


def test_the_model_is_as_before_afterwards(tmp_path: Path) -> None:
    model, layout = make("mixtral")
    controls = find_layers(model, layout)
    walk = Walk(model, batches_of(DOMAINS, 64), tmp_path)
    with closing(walk.file("hidden")) as file:
        walk.enter(file)
        with pytest.raises(AssertionError), watching(controls[0]):
            walk.step(0, walk.batches, file, file)  # without an accumulator
    for module in model.modules():
        assert "forward" not in module.__dict__
    assert len(controls[0].router._forward_hooks) == 1  # the engine's own


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_hidden_states_come_back_bit_for_bit(tmp_path: Path, dtype: torch.dtype) -> None:
    shapes = [(2, 3, 4), (1, 3, 4)]
    tensors = [torch.randn(shape).to(dtype) for shape in shapes]
    with closing(HiddenStates(tmp_path / "file", shapes, dtype)) as file:
        for number in (1, 0):
            file.write(number, tensors[number])
        file.write(0, tensors[0] + 1)
        file.write(0, tensors[0])
        device = torch.device("cpu")
        assert all(torch.equal(file.read(n, device), t) for n, t in enumerate(tensors))
    assert (tmp_path / "file").stat().st_size == 9 * 4 * dtype.itemsize
