"""Order, batches, shares and learning rate: what all processes must agree on."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from offline.finetune.schedule import batches, learning_rate, micro_batch, shares, shuffled
from offline.finetune.settings import FinetuneSettings
from vllm_moe_prune.errors import PruneError

counts = st.integers(1, 40)


@given(counts, st.integers(1, 9), st.integers(1, 3), st.integers(0, 5))
def test_each_pass_has_every_example_once(count: int, batch: int, epochs: int, seed: int) -> None:
    found = batches(count, FinetuneSettings(batch=batch, epochs=epochs), seed)
    order = np.concatenate(found)
    assert all(len(step) == batch for step in found[:-1])
    for number in range(epochs):
        one = order[number * count : (number + 1) * count]
        assert sorted(one) == list(range(count))


def test_a_part_of_a_pass_and_at_least_one_example() -> None:
    assert sum(map(len, batches(20, FinetuneSettings(epochs=1.25), 0))) == 25
    assert [len(step) for step in batches(20, FinetuneSettings(epochs=0.001), 0)] == [1]


def test_the_seed_decides_the_order() -> None:
    assert list(shuffled(30, 60, 1)) == list(shuffled(30, 60, 1))
    assert list(shuffled(30, 30, 1)) != list(shuffled(30, 30, 2))
    assert list(shuffled(30, 60, 1)[:30]) != list(shuffled(30, 60, 1)[30:])


@given(counts, st.integers(1, 4), st.integers(1, 5))
def test_processes_share_a_batch_out_evenly(size: int, processes: int, micro: int) -> None:
    batch = np.arange(100, 100 + size)
    each = [list(shares(batch, rank, processes, micro)) for rank in range(processes)]
    assert len({tuple(map(len, parts)) for parts in each}) == 1  # or gradients would never meet
    found = np.concatenate([np.concatenate(parts) for parts in each])
    assert list(found[found >= 0]) == list(batch)
    assert (found < 0).sum() < processes


@given(st.integers(1, 200), st.floats(0, 0.9))
def test_the_rate_goes_up_and_then_down_and_is_never_zero(steps: int, warmup: float) -> None:
    settings = FinetuneSettings(learning_rate=0.5, warmup=warmup)
    rates = [learning_rate(step, steps, settings) for step in range(steps)]
    top = int(np.argmax(rates))
    assert rates[top] == pytest.approx(0.5)
    assert top == int(warmup * steps)
    assert all(a < b for a, b in pairwise(rates[: top + 1]))
    assert all(a > b for a, b in pairwise(rates[top:]))
    assert min(rates) > 0


def test_half_way_down_is_half_the_rate() -> None:
    settings = FinetuneSettings(learning_rate=1.0, warmup=0)
    assert learning_rate(5, 10, settings) == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("batch", "micro", "processes", "wanted"), [(8, None, 1, 8), (8, None, 2, 4), (8, 2, 2, 2)]
)
def test_micro_batch(batch: int, micro: int | None, processes: int, wanted: int) -> None:
    assert micro_batch(FinetuneSettings(batch=batch, micro_batch=micro), processes) == wanted


def test_what_cannot_be_shared_out_is_refused_with_the_numbers() -> None:
    with pytest.raises(PruneError, match=r"batch of 8 .* 3 processes .*--batch 6"):
        micro_batch(FinetuneSettings(batch=8), 3)
    with pytest.raises(PruneError, match=r"micro-batch of 6 .* 4 sequences .*--micro-batch 2"):
        micro_batch(FinetuneSettings(batch=8, micro_batch=6), 2)
