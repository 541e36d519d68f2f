"""Constant vectors in a layer of vLLM: added once, whatever ranks there are, or refused."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("vllm", reason="the plugin side needs vLLM")

from tests.vllm_moe_prune.bare import layer_fields, map_of
from vllm_moe_prune.constant_experts import ConstantExperts
from vllm_moe_prune.errors import PruneError
from vllm_moe_prune.vllm_compat.constant_layers import substitute
from vllm_moe_prune.vllm_compat.limits import check_parallel

VECTORS = np.array([[1.0, 2.0], [10.0, 20.0]], np.float32)
WEIGHTS, IDS = torch.tensor([[0.5, 0.25, 0.25]]), torch.tensor([[1, 0, 2]])


class Experts:
    """One expert that gives 100 and is told its weight."""

    def __init__(self, *, monolithic: bool) -> None:
        self.quant_method = SimpleNamespace(is_monolithic=monolithic)

    def forward_modular(
        self, x: torch.Tensor, weights: torch.Tensor, ids: torch.Tensor, *_: Any
    ) -> torch.Tensor:
        assert (ids == 0).all()
        return weights.sum(dim=1, keepdim=True).repeat(1, 3) * 100  # vLLM may pad its outputs


def runner(rank: int = 0, *, reduced: bool = False, monolithic: bool = False) -> Any:
    return SimpleNamespace(
        moe_config=SimpleNamespace(tp_rank=rank),
        _fused_output_is_reduced=reduced,
        routed_experts=Experts(monolithic=monolithic),
    )


@pytest.mark.parametrize(
    ("rank", "reduced", "added"), [(0, False, True), (1, False, False), (1, True, True)]
)
def test_one_rank_adds_unless_all_have_the_whole(rank: int, reduced: bool, added: bool) -> None:
    made = runner(rank, reduced=reduced)
    layer = made.routed_experts
    substitute(made, ConstantExperts([-1, 0, -2], VECTORS), layer=3)
    given = WEIGHTS.clone(), IDS.clone()
    found = layer.forward_modular(torch.zeros(1, 2), *given)
    own = torch.tensor([[50.0, 50.0, 50.0]])
    vectors = torch.tensor([[0.25 * 1 + 0.25 * 10, 0.25 * 2 + 0.25 * 20, 0.0]])
    assert torch.equal(found, own + vectors if added else own)
    assert torch.equal(given[0], WEIGHTS) and torch.equal(given[1], IDS)
    substitute(made, None, layer=3)
    assert torch.equal(layer.forward_modular(torch.zeros(1, 2), WEIGHTS, IDS * 0), own * 2)


def test_kernels_that_choose_by_themselves_are_refused() -> None:
    with pytest.raises(PruneError, match=r"layer 3: vLLM's kernel .* chooses experts by itself"):
        substitute(runner(monolithic=True), ConstantExperts([-1, 0, -2], VECTORS), layer=3)


@pytest.mark.parametrize(
    "changes",
    [
        {"enable_expert_parallel": True},
        {"data_parallel_size": 2},
        {"prefill_context_parallel_size": 2},
    ],
)
def test_ranks_that_share_out_experts_or_tokens_are_refused(changes: dict[str, Any]) -> None:
    parallel = {
        "tensor_parallel_size": 2,
        "data_parallel_size": 1,
        "enable_expert_parallel": False,
        "enable_eplb": False,
    }
    constant = layer_fields(substituted={"experts": [0, 5], "vectors": "v"})
    routing_map = map_of(constant, matrices={"v": VECTORS})
    check_parallel(SimpleNamespace(parallel_config=SimpleNamespace(**parallel)), routing_map)
    config = SimpleNamespace(parallel_config=SimpleNamespace(**parallel | changes))
    with pytest.raises(PruneError, match="--tensor-parallel-size alone"):
        check_parallel(config, routing_map)
    check_parallel(config, map_of(layer_fields(num_kept=2, experts={"kept": [1, 3]})))
