"""A `vllm.LLM` from outside: the size of its cache's blocks, its end, and its death."""

from __future__ import annotations

import multiprocessing.connection
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from vllm_moe_prune.errors import PruneError

_AGAIN = 10  # looks, half a second apart, at who waits for a process that is gone


def block_size(llm: Any) -> int:
    """Return how many tokens one block of an engine's prefix cache holds."""
    return int(llm.llm_engine.vllm_config.cache_config.block_size)


def shut_down(llm: Any) -> None:
    """End the processes of a `vllm.LLM`."""
    llm.llm_engine.engine_core.shutdown()


def watch(llm: Any) -> None:
    """Have whoever waits for an engine hear of it when its process dies.

    vLLM notices, but wakes nobody: of a process that was killed it would wait for ever.
    """
    client = llm.llm_engine.engine_core
    manager = getattr(getattr(client, "resources", None), "engine_manager", None)
    processes = list(getattr(manager, "processes", ()))
    if processes and hasattr(client, "utility_results"):
        threading.Thread(target=_tell, args=(client, processes), daemon=True).start()


def _tell(client: Any, processes: list[Any]) -> None:
    from vllm.v1.engine.exceptions import EngineDeadError

    multiprocessing.connection.wait([process.sentinel for process in processes])
    for _ in range(_AGAIN):
        client.outputs_queue.put_nowait(EngineDeadError())
        for future in list(client.utility_results.values()):
            if not future.done():
                future.set_exception(EngineDeadError())
        time.sleep(0.5)


@contextmanager
def one_line_if_dead() -> Iterator[None]:
    """Say in one line that an engine's process has ended while a block waited for it.

    :raises PruneError: in place of vLLM's error, which refers to what was printed before
    """
    from vllm.v1.engine.exceptions import EngineDeadError

    try:
        yield
    except EngineDeadError as error:
        raise PruneError(
            "vLLM's engine process ended, as the system ends one when memory is short",
            hint="the same command goes on where this one was",
        ) from error
