"""`MappedRouter` against `routing.route`: with PyTorch's operations, and as one Triton kernel.

The kernel runs in Triton's interpreter here, and is compiled for GPUs that are not here; it ran on
none.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.vllm_moe_prune.test_routing import FAST, Doubles, routings
from vllm_moe_prune.layout import Score
from vllm_moe_prune.mapped_router import MappedRouter
from vllm_moe_prune.routing import route

triton = pytest.importorskip("triton")


@FAST
@given(
    st.booleans().flatmap(lambda one_hot: routings(one_hot=one_hot)),
    st.sampled_from(["softmax", "sigmoid"]),
    st.booleans(),
    st.booleans(),
)
def test_it_chooses_as_route_does(
    routing: tuple[Doubles, Doubles, int, list[int]],
    score: Score,
    renormalise: bool,
    negative: bool,
) -> None:
    numbers, w_rm, top_k, _ = routing
    if negative and not (w_rm.sum(axis=1) == 1).all():
        w_rm = w_rm - 0.5
    logits = torch.tensor(numbers, dtype=torch.float32)
    router = MappedRouter(w_rm.astype(np.float32), score)
    weights, ids = router(logits, logits, top_k, renormalise)
    given_map = torch.tensor(w_rm, dtype=torch.float32)
    expected, chosen = route(logits, given_map, top_k, score=score, renormalise=renormalise)
    assert ids.dtype == torch.int32 and ids.tolist() == chosen.tolist()
    if router.w_rm.dim() == 1:
        assert torch.equal(weights, expected)
    torch.testing.assert_close(weights, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("w_rm", "ids", "guarded"),
    [
        (np.eye(4)[[3, 1]], [3, 1], False),
        (np.eye(4)[[3, 3]], [3, 3], False),  # the same expert twice is one-hot as well
        (np.array([[0.5, 0.5, 0, 0], [0, 0, 1, 0]]), None, False),
        (np.array([[1.0, -0.5, 0, 0], [0, 0, 1, 0]]), None, True),
        (np.array([[0.0, 0, 0, 0], [0, 0, 1, 0]]), None, False),
    ],
)
def test_what_is_known_of_a_map_is_not_computed_again(
    w_rm: Doubles, ids: list[int] | None, guarded: bool
) -> None:
    router = MappedRouter(w_rm.astype(np.float32), "softmax")
    assert (router.w_rm.tolist() == ids) if ids else (router.w_rm.shape == (4, 2))
    assert (router.least_share > 0) == guarded


def test_scores_that_are_all_zero_are_no_numbers_divided_by_zero() -> None:
    router = MappedRouter(np.eye(3, dtype=np.float32)[:2], "softmax")
    logits = torch.tensor([[0.0, 0.0, 1000.0]])  # all of it goes to the expert that was dropped
    weights, _ = router(logits, logits, 2, True)
    assert weights.tolist() == [[0.0, 0.0]]


def test_the_map_is_a_buffer_and_in_no_checkpoint() -> None:
    block = torch.nn.Module()
    block.add_module("mapped_router", MappedRouter(np.eye(3, dtype=np.float32)[:2], "softmax"))
    assert dict(block.named_buffers()).keys() == {"mapped_router.w_rm"}
    assert not block.state_dict() and not list(block.parameters())
    with torch.device("meta"):  # as a loader says where the model is made
        made = MappedRouter(np.eye(3, dtype=np.float32)[:2], "softmax")
    assert made.w_rm.device.type == "meta"


@pytest.fixture(scope="module")
def interpreted() -> dict[str, Any]:
    """What `kernel_child` says."""
    child = [sys.executable, "-W", "ignore", "-m", "tests.vllm_moe_prune.kernel_child"]
    return dict(json.loads(subprocess.run(child, check=True, stdout=subprocess.PIPE).stdout))


def test_the_kernel_chooses_as_pytorch_does(interpreted: dict[str, Any]) -> None:
    assert len(interpreted["compared"]) == 24
    for found in interpreted["compared"]:
        assert found["ids"] and found["difference"] < 1e-5, found["case"]
        assert found["dtypes"] == ["torch.float32", "torch.int32"]


def test_the_kernel_names_experts_that_are_there(interpreted: dict[str, Any]) -> None:
    """Rows that only fill a recorded batch may hold anything."""
    assert all(0 <= expert < 5 for expert in interpreted["edges"]["nan"])
    assert interpreted["edges"]["zero"] == [[0.0, 0.0]]
    assert interpreted["edges"]["empty"] == [0, 2]


def test_a_layer_takes_one_kernel_where_it_took_fifteen(interpreted: dict[str, Any]) -> None:
    """Counted are PyTorch's operations that compute, each at least one kernel, and launches."""
    counted = interpreted["counted"]
    assert {name: row["before"] for name, row in counted.items()} == {
        name: 15 if "renormalised" in name else 5 for name in counted
    }
    assert {name: row["fused"] for name, row in counted.items()} == dict.fromkeys(counted, 1)
    assert {name: row["composed"] for name, row in counted.items() if "," in name} == {
        "one-hot, renormalised": 8,
        "positive, renormalised": 8,
        "negative, renormalised": 15,
    }


@pytest.fixture
def compiled_kernels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    monkeypatch.setenv("TRITON_DEFAULT_FP_FUSION", "1")  # or it warns that the default will change
    yield tmp_path


# E, E', whether a matrix, compute capability
_SMALL = (64, 32, False, 90)


@pytest.mark.parametrize(
    ("experts", "kept", "matrix", "capability"),
    [
        _SMALL,
        *(
            pytest.param(*case, marks=pytest.mark.slow)
            for case in [
                *((128, 64, matrix, made) for matrix in (True, False) for made in (80, 90, 100)),
                (1024, 512, True, 80),
            ]
        ),
    ],
)
def test_the_kernel_compiles_for_gpus(
    compiled_kernels: Path, experts: int, kept: int, matrix: bool, capability: int
) -> None:
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from vllm_moe_prune.routing_kernel import constants, num_warps, route_kernel

    given = constants(
        experts,
        kept,
        8,
        score="softmax",
        matrix=matrix,
        renormalise=True,
        least_share=0.05 if matrix else 0.0,
    )
    types = {
        "logits_ptr": "*bf16",
        "map_ptr": "*fp32" if matrix else "*i32",
        "weights_ptr": "*fp32",
        "ids_ptr": "*i32",
        **dict.fromkeys(("num_tokens", "stride", "num_experts", "num_kept"), "i32"),
    }
    source = ASTSource(
        route_kernel, signature=types | dict.fromkeys(given, "constexpr"), constexprs=given
    )
    made = triton.compile(
        source,
        target=GPUTarget("cuda", capability, 32),
        options={"num_warps": num_warps(kept), "num_stages": 1},
    )
    assert made.asm["cubin"] and any(compiled_kernels.iterdir())
    assert made.metadata.shared <= 99 << 10  # what a program may have on the smallest of them
