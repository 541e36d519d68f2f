"""A checkpoint opened in either engine, with a routing map applied."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from offline.runs.device import DType

if TYPE_CHECKING:
    from offline.engines.live.engine import VllmEngine
    from offline.engines.local.transformers import TransformersEngine
    from vllm_moe_prune.routing_map import RoutingMap

EngineName = Literal["transformers", "vllm"]


@dataclass(frozen=True, slots=True)
class Where:
    """The engine that measures."""

    engine: EngineName = "transformers"
    device: str = "auto"
    dtype: DType = "auto"
    tensor_parallel: int = 1


@contextmanager
def in_engine(base: Path, where: Where) -> Iterator[TransformersEngine | VllmEngine]:
    """Give a base in the engine that measures; it is closed afterwards."""
    if where.engine == "transformers":
        yield loaded(base, None, where.device, where.dtype)
        return
    with served(base, None, where.dtype, where.tensor_parallel, 0) as live:
        yield live


def loaded(
    model: Path, routing_map: RoutingMap | None, device: str, dtype: DType
) -> TransformersEngine:
    """Load a checkpoint into this process and apply a routing map to it."""
    from offline.engines.local.transformers import TransformersEngine
    from offline.runs.device import pick_device, pick_dtype

    device = pick_device(device)
    engine = TransformersEngine(model, device=device, dtype=pick_dtype(dtype, device))
    engine.apply(routing_map)
    return engine


def served(
    model: Path, routing_map: RoutingMap | None, dtype: DType, tensor_parallel: int, room: int
) -> VllmEngine:
    """Load a checkpoint into vLLM and apply a routing map to it.

    :param room: tokens of longer answers than usual
    """
    from offline.engines.live.engine import VllmEngine
    from offline.runs.device import pick_dtype
    from serve.server import cpu_build

    engine = VllmEngine(
        model,
        dtype=pick_dtype(dtype, "cpu" if cpu_build() else "cuda"),
        tensor_parallel_size=tensor_parallel,
        answer_tokens=room,
    )
    try:
        engine.apply(routing_map)
    except BaseException:
        engine.close()
        raise
    return engine
