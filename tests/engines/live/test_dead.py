"""Whoever waits for vLLM's engine process hears of its death; vLLM itself would wait for ever."""

from __future__ import annotations

import multiprocessing
import queue
import time
from concurrent.futures import Future
from types import SimpleNamespace
from typing import Any

import pytest

from vllm_moe_prune.errors import PruneError
from vllm_moe_prune.vllm_compat.engine import one_line_if_dead, watch


@pytest.mark.vllm
def test_a_waiting_call_and_a_waiting_reader_are_told() -> None:
    """The parts of vLLM's client that wait, as SyncMPClient has them, and a real process.

    tests/cli/test_killed_workers.py kills vLLM's own.
    """
    process = multiprocessing.get_context("fork").Process(target=time.sleep, args=(60,))
    process.start()
    waiting: Future[Any] = Future()
    client: Any = SimpleNamespace(
        resources=SimpleNamespace(engine_manager=SimpleNamespace(processes=[process])),
        outputs_queue=queue.Queue(),
        utility_results={1: waiting},
    )
    watch(SimpleNamespace(llm_engine=SimpleNamespace(engine_core=client)))
    time.sleep(0.2)
    assert not waiting.done() and client.outputs_queue.empty()
    process.kill()
    with pytest.raises(PruneError, match="engine process ended"), one_line_if_dead():
        waiting.result(timeout=30)
    with pytest.raises(PruneError, match="engine process ended"), one_line_if_dead():
        raise client.outputs_queue.get(timeout=30)
    process.join()
    watch(SimpleNamespace(llm_engine=SimpleNamespace(engine_core=object())))  # in this process
