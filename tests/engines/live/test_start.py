"""Engines with other settings, and engines that do not start: each test starts its own."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from offline.engines.live import start as starting
from offline.engines.live.engine import VllmEngine
from offline.engines.local.transformers import TransformersEngine
from offline.tasks.catalog import Task
from tests.engines.live.comparing import assert_same, the_map
from vllm_moe_prune.errors import PruneError

pytestmark = pytest.mark.vllm


def test_engine_that_does_not_start_says_why_in_one_line(base: Path) -> None:
    with pytest.raises(PruneError, match="vLLM cannot start on") as caught:
        VllmEngine(base, dtype="float32", max_model_len=10_000_000)
    assert "\n" not in str(caught.value)
    assert "max_model_len" in str(caught.value)


def test_another_model_runner_that_is_asked_for_is_overruled_in_a_line(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    name = "VLLM_USE_V2_MODEL_RUNNER"
    for given, lines in ((None, 0), ("0", 0), ("1", 1)):
        monkeypatch.delenv(name, raising=False)
        if given is not None:
            monkeypatch.setenv(name, given)
        with starting._environment({name: "2", "VMPRUNE_TEST": "3"}, starting._forced()):
            assert (os.environ[name], os.environ["VMPRUNE_TEST"]) == ("0", "3")
        assert os.environ.get(name) == given and "VMPRUNE_TEST" not in os.environ
        assert len(caplog.messages) == lines
    assert "starts with VLLM_USE_V2_MODEL_RUNNER=0" in caplog.text


def test_settings_are_those_of_the_platform(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a GPU vLLM chooses sizes itself; an engine that Ray has placed keeps to one machine."""
    (tmp_path / "config.json").write_text('{"model_type": "deepseek_v3", "kv_lora_rank": 512}')
    mla = {"custom_ops": ["-rotary_embedding"]}
    own = starting._of_platform(tmp_path, {"dtype": "float32"})
    assert (own["compilation_config"], own["attention_backend"]) == (mla, "CPU_MLA")
    (tmp_path / "config.json").write_text('{"model_type": "lfm2_moe"}')
    own = starting._of_platform(tmp_path, {"dtype": "float32"})
    assert own["compilation_config"] == mla and "attention_backend" not in own
    own = starting._of_platform(base, {"tensor_parallel_size": 2})
    assert own == {
        "distributed_executor_backend": "mp",
        "kv_cache_memory_bytes": 2**30,
        "block_size": 32,
    }
    monkeypatch.setattr(starting, "cpu_build", lambda: False)
    assert starting._of_platform(tmp_path, {"dtype": "float32"}) == {}


@pytest.mark.slow
def test_reason_comes_from_the_process_that_failed(base: Path) -> None:
    with pytest.raises(PruneError, match=r"start on \S+: ValueError: .*cache") as caught:
        VllmEngine(base, dtype="float32", kv_cache_bytes=4096)
    assert "\n" not in str(caught.value)


@pytest.mark.slow
def test_recorded_model_takes_maps_too(
    base: Path, reference: TransformersEngine, choice: Task, written: Task
) -> None:
    """torch.compile keeps what it saw: only the content of tensors may change with the map."""
    with VllmEngine(base, dtype="float32", enforce_eager=False) as recorded:
        for kind in ("base", "mixed", "top-1", "w_em"):
            routing_map = the_map(kind, base)
            if routing_map is not None and routing_map.max_top_k > recorded.top_k:
                with pytest.raises(PruneError, match="more than the base's 2"):
                    recorded.apply(routing_map)
                continue
            recorded.apply(routing_map)
            reference.apply(routing_map)
            assert_same(recorded.evaluate(choice, "test"), reference.evaluate(choice, "test"))
            assert_same(recorded.evaluate(written, "test"), reference.evaluate(written, "test"))
            found, expected = (one.usage(choice, "test", 4) for one in (recorded, reference))
            for layer, use in expected.items():
                np.testing.assert_array_equal(found[layer].tokens, use.tokens)
    reference.apply(None)


@pytest.mark.slow
def test_tensor_parallel_2(
    base: Path, reference: TransformersEngine, choice: Task, written: Task
) -> None:
    with VllmEngine(base, dtype="float32", tensor_parallel_size=2) as parallel:
        weights = parallel._lm.ask("moe_fingerprint")
        for kind in ("mixed", "w_em"):
            parallel.apply(the_map(kind, base))
            reference.apply(the_map(kind, base))
            assert_same(parallel.evaluate(choice, "test"), reference.evaluate(choice, "test"))
            assert_same(parallel.evaluate(written, "test"), reference.evaluate(written, "test"))
            found, expected = (e.agreement(choice, "test", 4) for e in (parallel, reference))
            assert found.accuracy == pytest.approx(expected.accuracy, abs=1e-3)
        parallel.apply(None)
        assert parallel._lm.ask("moe_fingerprint") == weights
    reference.apply(None)
