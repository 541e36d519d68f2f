from pathlib import Path

import pytest
import torch
from torch import Tensor

from benchmarks.demo_model.deltas_file import save_deltas
from offline.demo.deltas import Deltas, load_deltas
from offline.demo.dense import FFN, HIDDEN, LAYERS, Dense
from offline.demo.model import deltas_path, layer_tensors
from vllm_moe_prune.errors import PruneError

EXPERTS, DEPTH, RANK, WIDTH, INNER, KEPT = 3, 2, 2, 6, 16, 10


def tiny_factors() -> dict[str, Tensor]:
    shapes = {
        "gate_a": (RANK, WIDTH),
        "gate_b": (KEPT, RANK),
        "up_a": (RANK, WIDTH),
        "up_b": (KEPT, RANK),
        "down_a": (RANK, KEPT),
        "down_b": (WIDTH, RANK),
    }
    torch.manual_seed(0)
    return {name: torch.randn(EXPERTS, DEPTH, *shape) for name, shape in shapes.items()}


@pytest.fixture
def tiny(tmp_path: Path) -> tuple[Deltas, Tensor]:
    """Deltas of a tiny model and the neurons that its experts keep."""
    torch.manual_seed(1)
    order = torch.rand(EXPERTS, DEPTH, INNER).argsort(dim=-1)
    neurons = order[..., :KEPT].sort(dim=-1).values
    path = tmp_path / "tiny.safetensors"
    routers = torch.randn(DEPTH, EXPERTS, WIDTH)
    save_deltas(path, neurons, routers, tiny_factors(), {"seed": 0}, ffn=INNER)
    return load_deltas(path), neurons


def test_expert_weights_equal_a_naive_sum_over_rows_and_ranks(tiny: tuple[Deltas, Tensor]) -> None:
    deltas, neurons = tiny
    gate, up, down = (torch.randn(s) for s in ((INNER, WIDTH), (INNER, WIDTH), (WIDTH, INNER)))
    found = deltas.expert_weights(1, 1, gate, up, down)
    t = deltas.tensors
    for name, key, base in (("gate", "w1", gate), ("up", "w3", up), ("down", "w2", down.t())):
        naive = torch.zeros(INNER, WIDTH)
        for position, neuron in enumerate(neurons[1, 1].tolist()):
            for column in range(WIDTH):
                value = float(base[neuron, column])
                for r in range(RANK):
                    a, b = t[f"{name}_a"][1, 1].float(), t[f"{name}_b"][1, 1].float()
                    scale = float(t[f"{name}_scale"][1, 1, r])
                    if name == "down":
                        value += scale * float(b[column, r] * a[r, position])
                    else:
                        value += scale * float(b[position, r] * a[r, column])
                naive[neuron, column] = value
        torch.testing.assert_close(found[key], naive.t() if name == "down" else naive)


def test_quantised_delta_is_within_a_step_of_the_float_one(tiny: tuple[Deltas, Tensor]) -> None:
    deltas, _ = tiny
    factors = tiny_factors()
    for name in ("gate", "up", "down"):
        exact = factors[f"{name}_b"][2, 0] @ factors[f"{name}_a"][2, 0]
        assert (deltas.delta(name, 2, 0) - exact).abs().max() < 0.02 * exact.abs().max()


def test_layer_has_the_names_of_a_mixtral_checkpoint(tiny: tuple[Deltas, Tensor]) -> None:
    deltas, neurons = tiny
    prefix = "model.layers.1."
    shapes = {"gate_proj": (INNER, WIDTH), "up_proj": (INNER, WIDTH), "down_proj": (WIDTH, INNER)}
    weights = {f"{prefix}mlp.{n}.weight": torch.randn(s) for n, s in shapes.items()}
    weights[f"{prefix}input_layernorm.weight"] = torch.ones(WIDTH)
    tensors = layer_tensors(Dense(weights), deltas, 1)
    moe = f"{prefix}block_sparse_moe."
    names = {f"{moe}experts.{e}.w{i}.weight" for e in range(EXPERTS) for i in (1, 2, 3)}
    assert set(tensors) == names | {f"{moe}gate.weight", f"{prefix}input_layernorm.weight"}
    assert {t.dtype for t in tensors.values()} == {torch.bfloat16}
    dropped = sorted(set(range(INNER)) - set(neurons[0, 1].tolist()))
    assert not tensors[f"{moe}experts.0.w1.weight"][dropped].any()
    assert not tensors[f"{moe}experts.0.w2.weight"][:, dropped].any()


def test_committed_deltas_fit_their_budget_and_their_base() -> None:
    assert deltas_path().stat().st_size <= 25_000_000
    deltas = load_deltas(deltas_path())
    assert deltas.routers.shape == (LAYERS, 8, HIDDEN)
    kept = {len(deltas.kept(e, layer)) for e in range(8) for layer in range(LAYERS)}
    assert len(kept) == 1
    assert deltas.tensors["neurons"].shape == (8, LAYERS, FFN // 8)
    for name in ("gate", "up", "down"):
        delta = deltas.delta(name, 3, 7)
        assert delta.shape == ((HIDDEN, *kept) if name == "down" else (*kept, HIDDEN))
        assert torch.isfinite(delta).all()
        assert delta.abs().max() > 0
    assert {"settings", "versions", "text_sha256"} <= set(deltas.metadata)


def test_other_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(b"not one")
    with pytest.raises(PruneError, match="cannot read"):
        load_deltas(path)
