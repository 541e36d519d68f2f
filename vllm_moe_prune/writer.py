"""Streaming operations into new safetensors shards, by byte ranges where nothing is computed."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from vllm_moe_prune.checkpoint import INDEX_FILE, SINGLE_FILE, Checkpoint
from vllm_moe_prune.errors import PruneError
from vllm_moe_prune.provenance import TOOL, write_atomic
from vllm_moe_prune.rewrite import Combine, Drop, Mix, Operation, Slice, TensorInfo

DEFAULT_SHARD_BYTES = 4 * 1024**3
_HEADER_ALIGNMENT = 8
_CHUNK_BYTES = 64 * 1024**2
# Not every pair of file systems can copy a range inside the kernel.
_NO_COPY_RANGE = frozenset({errno.EXDEV, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL})

Progress = Callable[[int], None]
Kept = tuple[Operation, TensorInfo]


@dataclass(frozen=True, slots=True)
class WriteSummary:
    """What was written: number of tensors, their bytes, and the shard files."""

    tensors: int
    num_bytes: int
    files: tuple[Path, ...]


def write_shards(
    base: Checkpoint,
    operations: Iterable[Operation],
    folder: Path,
    *,
    max_shard_bytes: int = DEFAULT_SHARD_BYTES,
    progress: Progress | None = None,
) -> WriteSummary:
    """Perform the operations on ``base`` and write the results into ``folder``, index last.

    Memory does not depend on the size of the model: copies and row slices move byte ranges
    between files, and a merge holds one tensor at a time.

    :param progress: called with the bytes of each tensor written
    :raises OSError: for example when the disk is full; the caller removes ``folder``
    :raises PruneError: if a file of the base shrinks meanwhile
    """
    kept: list[Kept] = [(op, op.target) for op in operations if not isinstance(op, Drop)]
    shards = list(_shards(kept, max_shard_bytes))
    files = []
    for number, shard in enumerate(shards, start=1):
        name = SINGLE_FILE if len(shards) == 1 else _shard_name(number, len(shards))
        _write_shard(base, shard, folder / name, progress)
        files.append(folder / name)
    total = sum(info.num_bytes for _, info in kept)
    # Also of a single file: without an index vLLM takes every safetensors file for weights, and a
    # merged map puts its matrices beside them.
    weight_map = {
        info.name: file.name for file, shard in zip(files, shards, strict=True) for _, info in shard
    }
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
    write_atomic(folder / INDEX_FILE, json.dumps(index, indent=2) + "\n")
    return WriteSummary(len(kept), total, tuple(files))


def _shard_name(number: int, count: int) -> str:
    return f"model-{number:05d}-of-{count:05d}.safetensors"


def _shards(kept: list[Kept], max_bytes: int) -> Iterator[list[Kept]]:
    shard: list[Kept] = []
    size = 0
    for operation, info in kept:
        if shard and size + info.num_bytes > max_bytes:
            yield shard
            shard, size = [], 0
        shard.append((operation, info))
        size += info.num_bytes
    yield shard


def _write_shard(
    base: Checkpoint, shard: list[Kept], file: Path, progress: Progress | None
) -> None:
    with file.open("wb") as out:
        out.write(_header([info for _, info in shard]))
        out.flush()
        for operation, info in shard:
            for source, begin, end in _ranges(base, operation):
                _copy_range(source, begin, end, out)
            if isinstance(operation, Combine | Mix):
                out.write(_tensor_bytes(base, operation))
                out.flush()
            if progress is not None:
                progress(info.num_bytes)
        os.fsync(out.fileno())


def _header(infos: list[TensorInfo]) -> bytes:
    entries: dict[str, object] = {"__metadata__": {"format": "pt", "writer": TOOL}}
    offset = 0
    for info in infos:
        end = offset + info.num_bytes
        entries[info.name] = {
            "dtype": info.dtype,
            "shape": list(info.shape),
            "data_offsets": [offset, end],
        }
        offset = end
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _HEADER_ALIGNMENT)
    return len(text).to_bytes(8, "little") + text


def _ranges(base: Checkpoint, operation: Operation) -> Iterator[tuple[Path, int, int]]:
    """Yield the byte ranges (file, begin, end) that a copy or a row slice consists of."""
    if isinstance(operation, Combine | Mix | Drop):
        return
    stored = base.stored[operation.source]
    if isinstance(operation, Slice):
        row = (stored.end - stored.begin) // operation.count
        for number in operation.rows:
            yield stored.file, stored.begin + number * row, stored.begin + (number + 1) * row
    else:
        yield stored.file, stored.begin, stored.end


def _copy_range(source: Path, begin: int, end: int, out: BinaryIO) -> None:
    with source.open("rb", buffering=0) as stream:
        while begin < end:
            try:
                moved = os.copy_file_range(
                    stream.fileno(), out.fileno(), min(end - begin, _CHUNK_BYTES), begin
                )
            except OSError as error:
                if error.errno not in _NO_COPY_RANGE:
                    raise
                moved = _copy_through_memory(stream, out, begin, end)
            if moved == 0:
                raise PruneError(f"{source} became shorter while it was read")
            begin += moved


def _copy_through_memory(source: BinaryIO, out: BinaryIO, begin: int, end: int) -> int:
    source.seek(begin)
    data = source.read(min(end - begin, _CHUNK_BYTES))
    out.write(data)
    out.flush()
    return len(data)


def _tensor_bytes(base: Checkpoint, operation: Combine | Mix) -> memoryview:
    import torch

    tensor = base.perform(operation)
    assert tensor is not None
    return memoryview(tensor.contiguous().view(torch.uint8).numpy())  # type: ignore[arg-type]
