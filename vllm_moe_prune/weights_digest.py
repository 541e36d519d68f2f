"""What tells checkpoints of the same names and shapes apart: a digest of sampled bytes, or of all.

Of every tensor 64 bytes are read, of one that holds the experts of a layer 64 for each of them, at
places that the tensor's name decides. A model in which a share p of the numbers differs (of 2 bytes
each) is missed with a probability of (1 - p) ** (32 n), n the number of samples: with a thousand
samples and one number of a thousand changed less than 1e-13. Where one matrix alone differs, in
half of its numbers, it is 2e-10; one changed number in it is not seen. Of all bytes (`--verify`)
everything is.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from vllm_moe_prune.errors import PruneError
from vllm_moe_prune.headers import StoredTensor

_SAMPLE = 64  # bytes
_CHUNK = 8 << 20  # bytes
_THREADS = 16  # at a time: what is read lies far apart
_KNOWN: dict[object, str] = {}  # files are as they were where size and time are

Stored = Mapping[str, StoredTensor]
Parts = Callable[[str], int]


def sampled(stored: Stored, parts: Parts) -> str | None:
    """Return ``sha256:...`` of bytes of every tensor; None where the files are not here.

    :param stored: name -> where a tensor is
    :param parts: name -> how many experts a tensor holds, 1 for any other
    """
    return _digest(stored, lambda tensor: _samples(tensor, parts(tensor.info.name)), "sampled")


def whole(stored: Stored) -> str | None:
    """Return ``sha256:...`` of all bytes of all tensors; None where the files are not here."""
    return _digest(stored, lambda tensor: [(tensor.begin, tensor.end)], "whole")


Ranges = Callable[[StoredTensor], Sequence[tuple[int, int]]]


def _digest(stored: Stored, ranges: Ranges, kind: str) -> str | None:
    files: dict[Path, list[StoredTensor]] = {}
    for tensor in stored.values():
        files.setdefault(tensor.file, []).append(tensor)
    if not all(file.exists() for file in files):
        return None
    key = kind, tuple(stored), tuple(_state(file) for file in files)
    if key not in _KNOWN:
        found: dict[str, bytes] = {}
        with ThreadPoolExecutor(_THREADS) as pool:
            pieces = [piece for one in files.items() for piece in _pieces(*one)]
            for part in pool.map(lambda piece: dict(_read(piece[0], piece[1], ranges)), pieces):
                found |= part
        digest = hashlib.sha256()
        for name in sorted(found):
            digest.update(name.encode() + b"\0" + found[name])
        _KNOWN[key] = "sha256:" + digest.hexdigest()
    return _KNOWN[key]


def _state(file: Path) -> tuple[str, int, int, int]:
    now = file.stat()
    return str(file), now.st_size, now.st_mtime_ns, now.st_ino


def _pieces(
    file: Path, tensors: list[StoredTensor]
) -> Iterator[tuple[Path, Sequence[StoredTensor]]]:
    """Share a file's tensors out among threads, neighbours together."""
    each = max(1, -(-len(tensors) // _THREADS))
    for begin in range(0, len(tensors), each):
        yield file, tensors[begin : begin + each]


def _read(
    file: Path, tensors: Sequence[StoredTensor], ranges: Ranges
) -> Iterator[tuple[str, bytes]]:
    """Yield the digest of a tensor's ranges, by its name."""
    with file.open("rb", buffering=0) as stream:
        for tensor in tensors:
            digest = hashlib.sha256()
            for begin, end in ranges(tensor):
                while begin < end:
                    got = os.pread(stream.fileno(), min(_CHUNK, end - begin), begin)
                    if not got:
                        raise PruneError(f"{file} became shorter while it was read")
                    digest.update(got)
                    begin += len(got)
            yield tensor.info.name, digest.digest()


def _samples(tensor: StoredTensor, parts: int) -> list[tuple[int, int]]:
    """Return the byte ranges that stand for a tensor."""
    size, found = tensor.end - tensor.begin, []
    for part in range(parts):
        begin, end = size * part // parts, size * (part + 1) // parts
        room = end - begin - _SAMPLE
        word = hashlib.sha256(f"{tensor.info.name}/{part}".encode()).digest()
        begin += int.from_bytes(word[:8], "big") % (room + 1) if room > 0 else 0
        found.append((tensor.begin + begin, tensor.begin + min(begin + _SAMPLE, end)))
    return found
