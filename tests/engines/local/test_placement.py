"""Where weights are placed, with GPUs that are only said to be there."""

from __future__ import annotations

from pathlib import Path

import accelerate
import numpy as np
import pytest
import torch

from offline.calibration.calibrate import calibrate
from offline.engines.local import experts
from offline.engines.local.placement import placement
from offline.engines.local.transformers import TransformersEngine
from tests.calibration.test_calibrate import everything
from tests.calibration.test_walk import domain
from tests.tiny import make_tiny_mixtral, random_map
from vllm_moe_prune.checkpoint import Checkpoint
from vllm_moe_prune.errors import PruneError


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_mixtral(tmp_path_factory.mktemp("tiny") / "model")


def with_gpus(monkeypatch: pytest.MonkeyPatch, *free: float) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: len(free))
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda i: (int(free[i]), int(free[i])))


def test_a_model_goes_to_one_device_where_it_fits(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    size = Checkpoint.open(model).num_bytes
    assert placement(model, "auto", "cpu", None) == {"device_map": {"": "cpu"}}
    with_gpus(monkeypatch, 2 * size, 2 * size)
    assert placement(model, "auto", "cuda", None) == {"device_map": {"": "cuda"}}
    assert placement(model, "auto", "cuda:1", None) == {"device_map": {"": "cuda:1"}}
    with_gpus(monkeypatch, size)  # the only one: torch says what does not fit
    assert placement(model, "auto", "cuda", None) == {"device_map": {"": "cuda"}}


def test_a_larger_one_is_spread_over_the_gpus(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    size = Checkpoint.open(model).num_bytes  # of float32
    with_gpus(monkeypatch, size, size)
    found = placement(model, "auto", "cuda", None)
    assert found == {"device_map": "auto", "max_memory": dict.fromkeys((0, 1), int(0.8 * size))}
    assert placement(model, "bfloat16", "cuda", None) == {"device_map": {"": "cuda"}}
    assert placement(model, "float32", "cuda:0", None) == {"device_map": {"": "cuda:0"}}
    with_gpus(monkeypatch, size / 2, size / 2)
    with pytest.raises(PruneError, match="and 2 GPUs have"):
        placement(model, "auto", "cuda", None)


def test_layers_with_hooks_that_move_what_they_are_given_show_the_same(model: Path) -> None:
    """As accelerate puts them where layers are on several GPUs."""
    domains = (domain("a", 5, vocab=128, length=32),)
    engine = TransformersEngine(model, dtype="float32", tokens_per_batch=64)
    expected = everything(calibrate(engine, domains, gradients=True))
    parts = ["embed_tokens", "rotary_emb", "norm", *(f"layers.{n}" for n in range(2))]
    placed = {"lm_head": "cpu", **{f"model.{part}": "cpu" for part in parts}}
    accelerate.dispatch_model(engine.model, placed, force_hooks=True)
    assert hasattr(engine.model.model.layers[1], "_hf_hook")
    found = everything(calibrate(engine, domains, gradients=True))
    assert found.keys() == expected.keys()
    assert all(np.array_equal(array, expected[name]) for name, array in found.items())


def test_experts_come_back_from_host_memory_row_by_row() -> None:
    rows = torch.randn(5, 30)
    there = torch.device("cpu:0")  # another name than that of the rows' device
    assert rows.device != there
    found = experts._columns(rows, slice(20, 40), there)
    assert torch.equal(found, rows[:, 20:]) and found.is_contiguous()


def test_experts_that_do_not_change_are_not_combined_again(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = TransformersEngine(model, dtype="float32")
    first, other = (
        random_map(model, np.random.default_rng(seed), kinds=("w_em",)) for seed in (0, 1)
    )
    engine.apply(first)
    own = engine.logits([[1, 2, 3]])
    copied: list[slice] = []
    plain = experts._columns

    def noting(rows: torch.Tensor, part: slice, device: torch.device) -> torch.Tensor:
        copied.append(part)
        return plain(rows, part, device)

    monkeypatch.setattr(experts, "_columns", noting)
    engine.apply(first)
    assert copied == []
    engine.apply(other)
    assert copied and not torch.equal(engine.logits([[1, 2, 3]]), own)
    engine.apply(first)
    assert torch.equal(engine.logits([[1, 2, 3]]), own)
