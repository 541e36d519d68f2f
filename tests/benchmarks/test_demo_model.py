"""The parts that the demo model is trained with."""

from __future__ import annotations

import pytest
import torch

from benchmarks.demo_model.deltas_file import quantise
from benchmarks.demo_model.experts import FACTORS, Observed, Slices, moe_feed_forward
from benchmarks.demo_model.network import dense_feed_forward, hidden_states, logits
from offline.data.packages import unpacked_path
from offline.demo.dense import load_dense, load_tokenizer


def test_zero_delta_stays_zero() -> None:
    factors = {
        f"{name}_{side}": torch.zeros(3, 2, *((2, 6) if side == "a" else (10, 2)))
        for name in ("gate", "up", "down")
        for side in "ab"
    }
    packed = quantise(factors)
    assert all(int(packed[f"{name}_b"].abs().max()) == 0 for name in ("gate", "up", "down"))


def test_training_block_equals_a_naive_mixture() -> None:
    torch.manual_seed(0)
    experts, kept, width, rank, tokens = 4, 12, 8, 2, 9

    def matrices(*shape: int) -> list[list[torch.Tensor]]:
        return [[torch.randn(*shape).bfloat16()] for _ in range(experts)]

    slices = Slices(matrices(kept, width), matrices(kept, width), matrices(width, kept))
    inside = {"gate": (width, kept), "up": (width, kept), "down": (kept, width)}
    factors = {}
    for name in FACTORS:
        source, target = inside[name[:-2]]
        shape = (rank, source) if name.endswith("a") else (target, rank)
        factors[name] = 0.3 * torch.randn(experts, 1, *shape)
    routers, x = torch.randn(1, experts, width), torch.randn(tokens, width).bfloat16()
    found = moe_feed_forward(slices, factors, routers, Observed())(0, x)

    def full(name: str, e: int, base: torch.Tensor) -> torch.Tensor:
        return base.float() + factors[f"{name}_b"][e, 0] @ factors[f"{name}_a"][e, 0]

    for t in range(tokens):
        one, scores = x[t].float(), (routers[0] @ x[t].float()).softmax(dim=0)
        best = scores.argsort(descending=True)[:2].tolist()
        wanted = torch.zeros(width)
        for e in best:
            inner = torch.nn.functional.silu(full("gate", e, slices.gate[e][0]) @ one)
            inner = inner * (full("up", e, slices.up[e][0]) @ one)
            output = full("down", e, slices.down[e][0]) @ inner
            wanted += scores[e] / scores[best].sum() * output
        torch.testing.assert_close(found[t].float(), wanted, rtol=0.05, atol=0.3)


@pytest.mark.slow
def test_dense_base_predicts_english() -> None:
    if not unpacked_path("smollm2").is_dir():
        pytest.skip("the dense base is not downloaded; `vmprune demo model` does it")
    dense = load_dense()
    tokens = torch.tensor([load_tokenizer()("The capital of France is")["input_ids"]])
    hidden = hidden_states(dense, tokens, dense_feed_forward(dense))
    best = int(logits(dense, hidden[0, -1]).argmax())
    assert load_tokenizer().decode([best]) == " Paris"
