"""The lottery's outcome as a plain checkpoint: tuned weights in the dtypes that the base has."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from offline.build.build import write_checkpoint
from vllm_moe_prune.checkpoint import Checkpoint
from vllm_moe_prune.rewrite import Combine, Copy, TensorInfo
from vllm_moe_prune.routing_map import RoutingMap


def cast_operations(last: Checkpoint, base: Checkpoint) -> tuple[Copy | Combine, ...]:
    """Return what makes every tensor of ``last`` one of the dtype that it has in ``base``."""
    return tuple(_cast(info, base.tensors[name].dtype) for name, info in last.tensors.items())


def finish(
    last: Checkpoint,
    base: Checkpoint,
    routing_map: RoutingMap,
    out: Path,
    *,
    force: bool = False,
    progress: Callable[[int], None] | None = None,
    beside: Mapping[str, str] | None = None,
) -> None:
    """Write the checkpoint with its map, config, tokenizer and card.

    :param last: what the last round ended with
    :param beside: further text files to put into ``out``, name -> content
    :raises PruneError: if ``out`` exists, or the disk is full
    """
    write_checkpoint(
        last,
        cast_operations(last, base),
        base,
        routing_map,
        out,
        force=force,
        progress=progress,
        beside=beside,
    )


def _cast(info: TensorInfo, dtype: str) -> Copy | Combine:
    if info.dtype == dtype:
        return Copy(info.name, info)
    return Combine((info.name,), TensorInfo(info.name, dtype, info.shape), (1.0,))
