"""Engines with other settings, and engines that do not start: each test starts its own."""

from __future__ import annotations

from pathlib import Path

import pytest

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
        with pytest.raises(PruneError, match="cannot be watched"):
            recorded.usage(choice, "test")
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
