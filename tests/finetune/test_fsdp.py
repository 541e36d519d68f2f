"""Processes that share the weights out: FSDP2 over gloo, against one process that has them all."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from offline.finetune import launch
from offline.finetune.where import Where
from tests.finetune.samples import assert_alike, ragged, tiny, tune
from tests.finetune.test_resume import Stop
from vllm_moe_prune.errors import PruneError

DOCS = Path(__file__).parents[2] / "docs" / "finetune.md"


@pytest.fixture
def where(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Where:
    """The configuration that the documentation gives, for two processes."""
    monkeypatch.setattr(launch, "_MODULE", "tests.finetune.fsdp_worker")
    found = re.search(r"```yaml\n(.*?)```", DOCS.read_text(), re.DOTALL)
    assert found is not None
    file = tmp_path / "fsdp.yaml"
    file.write_text(found[1])
    return Where(processes=2, accelerate_config=file, save_every=2)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny(tmp_path_factory.mktemp("tiny") / "m", tie=True)


@pytest.mark.slow
def test_a_stopped_run_goes_on_and_ends_as_one_process_does(
    model: Path, where: Where, tmp_path: Path
) -> None:
    examples = ragged(count=12)
    options: dict[str, Any] = {"epochs": 3, "micro_batch": 1}
    one = tune(model, tmp_path / "one", examples, **options)
    with pytest.raises(KeyboardInterrupt):
        tune(model, tmp_path / "two", examples, where, **options, reporter=Stop(5))
    again = Stop(99)
    two = tune(model, tmp_path / "two", examples, where, **options, reporter=again)
    assert again.began == 4
    np.testing.assert_allclose(two.losses, one.losses, rtol=1e-5)
    assert two.tuning == one.tuning
    assert_alike(tmp_path / "one", tmp_path / "two")


@pytest.mark.slow
def test_routers_and_experts_alone_with_checkpointing(
    model: Path, where: Where, tmp_path: Path
) -> None:
    options: dict[str, Any] = {"trainable": "router+experts", "micro_batch": 1}
    one = tune(model, tmp_path / "one", **options)
    two = tune(model, tmp_path / "two", None, where, **options, checkpointing=True)
    np.testing.assert_allclose(two.losses, one.losses, rtol=1e-5)
    assert_alike(tmp_path / "one", tmp_path / "two")


def test_lora_is_refused(model: Path, where: Where, tmp_path: Path) -> None:
    with pytest.raises(PruneError, match="LoRA on fused experts is not supported with FSDP"):
        tune(model, tmp_path / "out", None, where, trainable="lora", micro_batch=1)
    assert not (tmp_path / "out").exists()
