"""Released models by their names, shapes and dtypes; knows nothing of the product.

A file of this folder is one model. ``config`` is its config.json with "E" for the number of experts
and "k" for the active ones. ``tensors`` are patterns of names with dtype and shape: {all} and its
like stand for the numbers of ``layers`` ("3-39/4": from 3 to 39 in steps of 4), {expert} for those
of the experts; a shape may have E, E+256 (rows of no expert follow) or E*64 (so many rows each).
``drafts`` are the same of draft layers, and ``without_drafts`` what config.json says without them:
also where it promises some that are not in the files.
``refused`` is a part of the message where nothing can be dropped.

So the pruned model is the same file with another E.
"""

from __future__ import annotations

import itertools
import json
import re
import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

FOLDER = Path(__file__).parent
MODELS = {file.stem: file for file in sorted(FOLDER.glob("*.json"))}
_BITS = {"F64": 8, "I64": 8, "F32": 4, "I32": 4, "BF16": 2, "F16": 2}  # others have one byte
_COUNT = re.compile(r"E(?:([+*])(\d+))?")
Tensor = tuple[str, tuple[int, ...]]  # dtype, shape


@dataclass(frozen=True)
class Named:
    """A tensor with the pattern that it is of, and the number of its expert."""

    name: str
    pattern: str
    expert: int | None
    dtype: str
    shape: tuple[int, ...]

    @property
    def num_bytes(self) -> int:
        return _BITS.get(self.dtype, 1) * int(np.prod(self.shape, dtype=np.int64))


@dataclass(frozen=True)
class Released:
    """A model; ``small`` has the first and the last layer of each kind and narrow matrices."""

    fields: Mapping[str, Any]
    small: bool = False

    @classmethod
    def read(cls, name: str, *, small: bool = False) -> Released:
        return cls(json.loads(MODELS[name].read_text()), small)

    @property
    def groups(self) -> int:
        return int(self.fields.get("groups", 1))

    @property
    def experts(self) -> int:
        """E: of a small model four in each group of the router, or eight."""
        whole = int(self.fields["experts"])
        return min(whole, max(8, 4 * self.groups)) if self.small else whole

    @property
    def top_k(self) -> int:
        return min(int(self.fields["top_k"]), 2) if self.small else int(self.fields["top_k"])

    def numbers(self, kind: str) -> list[int]:
        """Return the layers of a kind."""
        found: list[int] = []
        for part in self.fields["layers"][kind].split(","):
            ends, _, step = part.partition("/")
            first, _, last = ends.partition("-")
            found += range(int(first), int(last or first) + 1, int(step or 1))
        return sorted({found[0], found[-1]}) if self.small else found

    def config(self, experts: int, top_k: int) -> Any:
        """Return config.json for these counts."""

        def counted(value: Any) -> Any:
            if isinstance(value, dict):
                return {key: counted(one) for key, one in value.items()}
            if isinstance(value, list):
                return [counted(one) for one in value]
            return {"E": experts, "k": top_k}.get(value, value) if isinstance(value, str) else value

        return counted(self.fields["config"])

    def without_drafts(self, config: Any) -> Any:
        """Return a config as it is without draft layers."""
        copied = json.loads(json.dumps(config))
        for key, value in self.fields.get("without_drafts", {}).items():
            *sections, last = key.split(".")
            place = copied
            for section in sections:
                place = place[section]
            place[last] = value
        return copied

    def tensors(self, experts: int, *, part: str = "tensors") -> Iterator[Named]:
        """Yield all tensors of a model with so many experts."""
        for pattern, text in self.fields.get(part, {}).items():
            dtype, *sizes = text.split()
            shape = tuple(self._size(size, experts) for size in sizes)
            kinds = re.findall(r"\{(\w+)\}", pattern)
            every = [range(experts) if k == "expert" else self.numbers(k) for k in kinds]
            for numbers in itertools.product(*every):
                chosen = dict(zip(kinds, numbers, strict=True))
                name = pattern.format(**chosen)
                yield Named(name, pattern, chosen.get("expert"), dtype, shape)

    def _size(self, size: str, experts: int) -> int:
        if found := _COUNT.fullmatch(size):
            more = int(found[2] or 0)
            return {"+": experts + more, "*": experts * self._narrow(more)}.get(found[1], experts)
        return self._narrow(int(size))

    def _narrow(self, size: int) -> int:
        return min(size, 4) if self.small else size

    def rows(self, tensor: Named, kept: Sequence[int]) -> list[tuple[int, int]] | None:
        """Return the byte ranges of a tensor of E experts that are left of it; None: all."""
        sizes = self.fields["tensors"].get(tensor.pattern)
        sizes = (sizes or self.fields["drafts"][tensor.pattern]).split()[1:]
        found = [_COUNT.fullmatch(size) for size in sizes]
        count = next((one for one in found if one), None)
        if count is None:
            return None
        rest = int(count[2]) if count[1] == "+" else 0
        each = tensor.num_bytes // (self.experts + rest)
        ids = [*kept, *range(self.experts, self.experts + rest)]
        return [(i * each, (i + 1) * each) for i in ids]


def first_of_each(names: Iterable[str]) -> list[Any]:
    """Return cases for tests: the second model of a type is a slow one."""
    seen: set[str] = set()
    cases = []
    for name in names:
        kind = json.loads(MODELS[name].read_text())["config"]["model_type"]
        cases.append(pytest.param(name, marks=pytest.mark.slow if kind in seen else ()))
        seen.add(kind)
    return cases


def bytes_of(tensor: Named) -> bytes:
    """Return what a tensor of a small model holds: something else in each."""
    seed = [ord(letter) for letter in tensor.name]
    return np.random.default_rng(seed).bytes(tensor.num_bytes)


def write(folder: Path, config: Any, tensors: Sequence[Named], *, contents: bool) -> None:
    """Write a checkpoint of one file.

    :param contents: whether tensors have any; else the file has a hole in their place
    """
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config))
    header, end = {}, 0
    for tensor in tensors:
        begin, end = end, end + tensor.num_bytes
        entry = {"dtype": tensor.dtype, "shape": tensor.shape, "data_offsets": [begin, end]}
        header[tensor.name] = entry
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with (folder / "model.safetensors").open("wb") as out:
        out.write(struct.pack("<Q", len(text)) + text)
        if contents:
            out.writelines(map(bytes_of, tensors))
        out.truncate(8 + len(text) + end)


def read(folder: Path) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    """Return name -> dtype, shape and bytes of all tensors of a folder's safetensors files."""
    found = {}
    for file in folder.glob("**/*.safetensors"):
        content = file.read_bytes()
        (length,) = struct.unpack("<Q", content[:8])
        for name, entry in json.loads(content[8 : 8 + length]).items():
            if name != "__metadata__":
                begin, end = (8 + length + at for at in entry["data_offsets"])
                found[name] = (entry["dtype"], tuple(entry["shape"]), content[begin:end])
    return found
