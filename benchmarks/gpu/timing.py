"""How long a function takes on a device, as it is launched and as part of a recorded graph."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch

ResultT = TypeVar("ResultT")


def wait(device: str) -> None:
    """Wait until all that was launched on a device is done."""
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)


def seconds_of(run: Callable[[], object], device: str) -> float:
    """Return the seconds of one call, with what it launched."""
    wait(device)
    begin = time.perf_counter()
    run()
    wait(device)
    return time.perf_counter() - begin


def microseconds(run: Callable[[], object], device: str, times: int = 200) -> float:
    """Return the microseconds of one of many calls in a row, the first of which are not counted."""
    for _ in range(5):
        run()
    total = seconds_of(lambda: [run() for _ in range(times)], device)
    return round(total / times * 1e6, 2)


@contextmanager
def no_synchronisation(device: str) -> Iterator[None]:
    """Within this context a function that waits for the GPU is an error; nothing on a CPU."""
    if not device.startswith("cuda"):
        yield
        return
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def recorded(run: Callable[[], ResultT], device: str) -> tuple[Callable[[], None], ResultT]:
    """Record a function in a CUDA graph; return what replays it, and the tensors it writes to.

    For a GPU only.
    """
    stream = torch.cuda.Stream(device)
    stream.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(stream):  # a warm-up elsewhere: the first call may compile and allocate
        for _ in range(3):
            run()
    torch.cuda.current_stream(device).wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = run()
    return graph.replay, result
