"""What a safetensors file says of its tensors, and where their bytes lie in it.

A file that is not here, but belongs to a snapshot in the hub's cache, is asked over the network:
only its header is downloaded, and the bytes of those tensors that are read.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from vllm_moe_prune.errors import PruneError
from vllm_moe_prune.hub_parts import RemoteFile
from vllm_moe_prune.rewrite import ITEM_BYTES, TensorInfo

_FIRST = 64 * 1024  # bytes that are asked for before a header's length is known
_MAX_HEADER = 100 * 1024**2  # the format's own limit
_REQUESTS = 8  # at a time


class MissingShardError(PruneError):
    """There is no such file, neither here nor on the hub."""


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
        with self.file.open("rb") as stream:
            stream.seek(self.begin)
            return stream.read(self.end - self.begin)


def read_headers(files: Iterable[Path]) -> list[StoredTensor]:
    """Return the tensors of safetensors files, in the order of files and of bytes within a file.

    :raises PruneError: if a file is missing, truncated or damaged
    """
    with ThreadPoolExecutor(_REQUESTS) as pool:
        return [tensor for found in pool.map(_read_header, files) for tensor in found]


def _read_header(file: Path) -> list[StoredTensor]:
    try:
        remote = None if file.exists() else RemoteFile.of(file)
        length, header = _local(file) if remote is None else _remote(remote)
    except FileNotFoundError:
        hint = "download the checkpoint again"
        raise MissingShardError(f"shard {file} is missing", hint) from None
    except PruneError:
        raise
    except (SafetensorError, OSError, ValueError, LookupError, TypeError) as error:
        raise PruneError(
            f"shard {file} is truncated or damaged: {error}", hint="download it again"
        ) from None
    found = []
    for name, entry in sorted(header.items(), key=lambda item: item[1]["data_offsets"][0]):
        if entry["dtype"] not in ITEM_BYTES:
            raise PruneError(
                f"shard {file}: tensor {name} has dtype {entry['dtype']}, which is not known"
            )
        begin, end = (8 + length + offset for offset in entry["data_offsets"])
        info = TensorInfo(name, entry["dtype"], tuple(entry["shape"]))
        found.append(StoredTensor(info, file, begin, end))
    return found


def _local(file: Path) -> tuple[int, dict[str, Any]]:
    """Return the length of a file's header, and what it says of tensors."""
    with safe_open(file, framework="np"):
        pass  # opening checks header, offsets and length
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        return length, _tensors(stream.read(length))


def _tensors(header: bytes) -> dict[str, Any]:
    return {name: entry for name, entry in json.loads(header).items() if name != "__metadata__"}


@functools.lru_cache(maxsize=4096)  # a commit never changes, and commands open a model repeatedly
def _remote(file: RemoteFile) -> tuple[int, dict[str, Any]]:
    """Return the same of a file on the hub."""
    start, size = file.read(0, _FIRST)
    length = int.from_bytes(start[:8], "little")
    if not 0 < length <= min(size, _MAX_HEADER):
        raise ValueError("its header has no sensible length")
    if 8 + length > len(start):
        start += file.read(len(start), 8 + length)[0]
    header = _tensors(start[8 : 8 + length])
    end = max((entry["data_offsets"][1] for entry in header.values()), default=0)
    if 8 + length + end != size:
        raise ValueError(f"it has {size} bytes, its header tells of {8 + length + end}")
    return length, header
