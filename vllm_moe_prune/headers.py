"""What a safetensors file says of its tensors, and where their bytes lie in it.

A file that is not here, but belongs to a snapshot in the hub's cache, is asked over the network:
only its header is downloaded, and the bytes of those tensors that are read.
"""

from __future__ import annotations

import functools
import math
import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, NonNegativeInt, Strict

from vllm_moe_prune.errors import PruneError
from vllm_moe_prune.hub_parts import RemoteFile
from vllm_moe_prune.operations import ITEM_BYTES, TensorInfo
from vllm_moe_prune.reading import MissingFileError, opened, parse_json, validated

_FIRST = 64 * 1024  # bytes that are asked for before a header's length is known
_MAX_HEADER = 100 * 1024**2  # the format's own limit
_REQUESTS = 8  # at a time


class MissingShardError(PruneError):
    """There is no such file, neither here nor on the hub."""


class DamagedError(PruneError):
    """A file is not what its format wants."""


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """Where a tensor's bytes lie: file and absolute byte range."""

    info: TensorInfo
    file: Path
    begin: int
    end: int

    def read(self) -> bytes:
        """Return the tensor's bytes.

        :raises PruneError: if its file is not here and the hub cannot be asked
        """
        if not self.file.exists() and (remote := RemoteFile.of(self.file)) is not None:
            return remote.read(self.begin, self.end)[0]
        with opened(self.file) as stream:
            stream.seek(self.begin)
            found = stream.read(self.end - self.begin)
        if len(found) != self.end - self.begin:
            raise PruneError(f"{self.file} became shorter while it was read")
        return found


def read_headers(files: Iterable[Path]) -> list[StoredTensor]:
    """Return the tensors of safetensors files, in the order of files and of bytes within a file.

    :raises PruneError: if a file is missing, truncated or damaged
    """
    with ThreadPoolExecutor(_REQUESTS) as pool:
        return [tensor for found in pool.map(_read_header, files) for tensor in found]


def _read_header(file: Path) -> list[StoredTensor]:
    try:
        remote = None if _is_here(file) else RemoteFile.of(file)
        length, entries = _local(file) if remote is None else _remote(remote)
    except (FileNotFoundError, MissingFileError):
        hint = "download the checkpoint again"
        raise MissingShardError(f"shard {file} is missing", hint) from None
    except DamagedError as error:
        raise PruneError(
            f"shard {file} is truncated or damaged: {error}", hint="download it again"
        ) from None
    found = []
    for name, entry in sorted(entries.items(), key=lambda item: item[1].data_offsets):
        if entry.dtype not in ITEM_BYTES:
            raise PruneError(
                f"shard {file}: tensor {name} has dtype {entry.dtype}, which is not known"
            )
        begin, end = (8 + length + offset for offset in entry.data_offsets)
        found.append(StoredTensor(TensorInfo(name, entry.dtype, entry.shape), file, begin, end))
    return found


def _is_here(file: Path) -> bool:
    try:
        return file.exists()
    except OSError:  # a name that no file can have: who opens it says so
        return True


def _local(file: Path) -> tuple[int, dict[str, _Entry]]:
    """Return the length of a file's header, and what it says of tensors."""
    with opened(file) as stream:
        size = os.fstat(stream.fileno()).st_size
        length = int.from_bytes(stream.read(8), "little")
        if not 0 < length <= min(size - 8, _MAX_HEADER):
            raise DamagedError("its header has no sensible length")
        return length, _entries(stream.read(length), size)


class _Entry(BaseModel):
    """What a header says of one tensor."""

    model_config = ConfigDict(strict=True)

    dtype: str
    shape: Annotated[tuple[NonNegativeInt, ...], Strict(False)]
    data_offsets: Annotated[tuple[NonNegativeInt, NonNegativeInt], Strict(False)]


def _entries(header: bytes, size: int) -> dict[str, _Entry]:
    """Return what a header says, where it is as the format wants it: no holes, no overlaps.

    :param size: of the file
    :raises DamagedError: if it is not, or tells of other bytes than the file has
    """
    try:
        fields = parse_json(header, "its header")
        if not isinstance(fields, dict):
            raise DamagedError("its header is no object")
        found = {
            name: validated(entry, _Entry, f"tensor {name}")
            for name, entry in fields.items()
            if name != "__metadata__"
        }
    except PruneError as error:
        raise DamagedError(error.message) from None
    end = 0
    for name, entry in sorted(found.items(), key=lambda item: item[1].data_offsets):
        begin, after = entry.data_offsets
        each = ITEM_BYTES.get(entry.dtype)
        whole = after - begin if each is None else each * math.prod(entry.shape)
        if begin != end or after - begin != whole or max(entry.shape, default=0) > size:
            raise DamagedError(f"tensor {name} is not where, or as large as, its header says")
        end = after
    if 8 + len(header) + end != size:
        raise DamagedError(f"it has {size} bytes, its header tells of {8 + len(header) + end}")
    return found


@functools.lru_cache(maxsize=4096)  # a commit never changes, and commands open a model repeatedly
def _remote(file: RemoteFile) -> tuple[int, dict[str, _Entry]]:
    """Return the same of a file on the hub."""
    start, size = file.read(0, _FIRST)
    length = int.from_bytes(start[:8], "little")
    if not 0 < length <= min(size, _MAX_HEADER):
        raise DamagedError("its header has no sensible length")
    if 8 + length > len(start):
        start += file.read(len(start), 8 + length)[0]
    return length, _entries(start[8 : 8 + length], size)
