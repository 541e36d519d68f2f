"""The estimate from headers, and the refusal before anything is loaded."""

from __future__ import annotations

from pathlib import Path

import pytest

from offline.finetune import finetune, memory
from offline.finetune.memory import MemoryNeed, check_memory, memory_need
from offline.finetune.settings import FinetuneSettings
from offline.runs.memory import free_bytes
from tests.finetune.samples import tiny, tune
from vllm_moe_prune.checkpoint import Checkpoint
from vllm_moe_prune.errors import PruneError


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny(tmp_path_factory.mktemp("tiny") / "m", layers=3, dtype="bfloat16")


def need(
    model: Path, processes: int = 1, fsdp: bool = False, length: int = 32, **settings: object
) -> dict[str, int]:
    return memory_need(
        Checkpoint.open(model),
        FinetuneSettings.model_validate(settings),
        length=length,
        micro=2,
        processes=processes,
        fsdp=fsdp,
    ).memory


def test_weights_gradients_and_moments(model: Path) -> None:
    weights = 2 * Checkpoint.open(model).num_bytes  # stored in bfloat16
    everything = need(model, trainable="all")
    assert everything["weights"] == everything["gradients"] == weights
    assert everything["Adam's two moments"] == 2 * weights
    routers = need(model, trainable="router")
    assert (routers["weights"], routers["gradients"]) == (weights, 3 * 8 * 32 * 4)


def test_only_fsdp_shares_weights_out(model: Path) -> None:
    one, plain = need(model), need(model, processes=4)
    shared = need(model, processes=4, fsdp=True)
    for name in ("weights", "gradients", "Adam's two moments"):
        assert plain[name] == one[name]
        assert shared[name] == one[name] // 4
    assert sum(plain.values()) > sum(one.values()) > sum(shared.values())


def test_checkpointing_and_shorter_sequences_need_less(model: Path) -> None:
    whole = need(model)["activations"]
    assert need(model, checkpointing=True)["activations"] < whole
    assert need(model, length=16)["activations"] == whole // 2
    lora, twice = need(model, trainable="lora"), need(model, trainable="lora", checkpointing=True)
    assert twice["weights with their adapters"] < lora["weights with their adapters"]


def test_what_does_not_fit_is_refused_with_the_numbers(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "free_bytes", lambda device: 1024**3 // 100)
    with pytest.raises(PruneError, match=r"0\.01 GiB are free on cpu.*moments.*--trainable router"):
        check_memory(MemoryNeed({"Adam's two moments": 2 * 1024**3}), "cpu")
    check_memory(MemoryNeed({"weights": 1024**3 // 150}), "cpu")
    with pytest.raises(PruneError, match="for 2 processes"):
        check_memory(MemoryNeed({"weights": 1024**3 // 150}), "cpu", processes=2)
    monkeypatch.setattr(memory, "free_bytes", lambda device: 1000)
    monkeypatch.setattr(finetune, "_train", lambda *_: pytest.fail("it was loaded"))
    with pytest.raises(PruneError, match="training needs about"):
        tune(model, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_free_memory_is_that_of_this_machine() -> None:
    assert 10 * 1024**2 < free_bytes("cpu") < 1024**5
