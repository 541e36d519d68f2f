"""Stored experts that merged ones overwrite: what is written, and what is left alone."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from vllm_moe_prune import live_experts
from vllm_moe_prune.live_experts import LiveExperts

E = 6


@pytest.fixture(autouse=True)
def _several_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live_experts, "_CHUNK", 5 * E)


def module() -> Any:
    draw = torch.Generator().manual_seed(0)
    return SimpleNamespace(
        w13_weight=torch.randn(E, 4, 3, generator=draw).bfloat16(),
        w2_weight=torch.randn(E, 3, 4, generator=draw).bfloat16(),
        w13_bias=torch.randn(E, 4, generator=draw),
        w2_bias=None,
    )


def w_em(rng: np.random.Generator, rows: int, copies: int = 0) -> Any:
    found = rng.normal(size=(rows, E)).astype(np.float32)
    found[:copies] = np.eye(E)[rng.permutation(E)[:copies]]
    return found


def content(found: Any) -> list[torch.Tensor]:
    return [found.w13_weight.clone(), found.w2_weight.clone(), found.w13_bias.clone()]


def assert_equal(found: Any, expected: list[torch.Tensor]) -> None:
    for one, other in zip(content(found), expected, strict=True):
        assert torch.equal(one, other)


def test_rows_are_weighted_sums_whatever_was_there_before() -> None:
    rng = np.random.default_rng(1)
    here = module()
    experts = LiveExperts(here)
    before, digest = content(here), experts.digest()
    for rows, copies in ((4, 0), (2, 1), (6, 3), (3, 3), (5, 2), (1, 0)):
        matrix = w_em(rng, rows, copies)
        experts.set(matrix)
        fresh = module()
        LiveExperts(fresh).set(matrix)
        assert_equal(here, content(fresh))
        for one, other in zip(content(here), before, strict=True):
            new = torch.einsum("je,e...->j...", torch.from_numpy(matrix), other.float())
            torch.testing.assert_close(one[:rows].float(), new, rtol=1e-2, atol=1e-2)
            assert torch.equal(one[rows:], other[rows:])
    experts.set(None)
    assert_equal(here, before)
    assert experts.digest() == digest
    assert experts.pristine_bytes == sum(t.numel() * t.element_size() for t in before)


def test_a_row_with_a_single_one_is_a_copy() -> None:
    """Nothing is multiplied: what is not finite elsewhere does not reach it."""
    here = module()
    here.w13_weight[5] = torch.inf
    before = here.w13_weight.clone()
    matrix = np.zeros((3, E), np.float32)
    matrix[0, 4], matrix[1, 1], matrix[2, [0, 2]] = 1, 1, 0.5
    LiveExperts(here).set(matrix)
    assert torch.equal(here.w13_weight[:2], before[[4, 1]])
    assert here.w13_weight[2].isnan().all()  # a sum, with 0 x inf


def test_what_does_so_already_is_not_touched(monkeypatch: pytest.MonkeyPatch) -> None:
    write, count = live_experts._Rows.write, [0]

    def counted(*arguments: Any) -> None:
        count[0] += 1
        write(*arguments)

    monkeypatch.setattr(live_experts._Rows, "write", counted)
    rng = np.random.default_rng(2)
    here = module()
    experts = LiveExperts(here)

    experts.set(np.eye(E, dtype=np.float32)[:4])  # every expert is where it is stored
    experts.set(None)
    assert count == [0] and experts.pristine_bytes == 0
    matrix = w_em(rng, 3)
    experts.set(matrix)
    assert count == [3]  # weights
    experts.set(matrix.copy())
    assert count == [3]
    experts.set(None)
    assert count == [6]


def test_the_copy_is_in_contiguous_blocks_of_all_experts_in_plain_memory() -> None:
    here = module()
    experts = LiveExperts(here)
    experts.set(w_em(np.random.default_rng(3), 2))
    blocks = experts._pristine["w13_weight"]
    assert [block.shape for block in blocks] == [(E, 5), (E, 5), (E, 2)]
    assert all(block.is_contiguous() and not block.is_pinned() for block in blocks)
    assert torch.equal(torch.cat(blocks, dim=1), module().w13_weight.view(E, -1))


def test_the_copy_of_what_a_gpu_holds_is_pinned(monkeypatch: pytest.MonkeyPatch) -> None:
    class OnGpu(torch.Tensor):
        is_cuda = True

    empty, asked = torch.empty, []

    def noted(*shape: Any, pin_memory: bool, **options: Any) -> torch.Tensor:
        asked.append(pin_memory)
        return empty(*shape, **options)

    monkeypatch.setattr(torch, "empty", noted)
    for weight in (torch.zeros(E, 7), torch.zeros(E, 7).as_subclass(OnGpu)):
        live_experts._blocks(weight)
    assert asked == [False, False, True, True]
