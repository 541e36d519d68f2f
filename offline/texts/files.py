"""Files with rows: which there are, how they are opened, and their rows one after the other."""

from __future__ import annotations

import gzip
import io
import os
from collections.abc import Callable, Container, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import BinaryIO, cast

from offline.texts.csv_rows import csv_columns, csv_rows
from offline.texts.json_rows import json_rows, jsonl_rows
from offline.texts.parquet_rows import parquet_columns, parquet_rows
from offline.texts.row import LongText, Row, explained
from vllm_moe_prune.errors import PruneError

Open = Callable[[], BinaryIO]
Wanted = Container[int]
Reader = Callable[[Open, str, Wanted | None], Iterator[Row | None]]


def _txt_rows(open_bytes: Open, place: str, wanted: Wanted | None) -> Iterator[Row | None]:
    """Yield the one document that a plain text file is."""
    wants = wanted is None or 0 in wanted
    yield Row(place, "passage", LongText(place, open_bytes)) if wants else None


# Each yields one entry per row of a file, None for those that are not wanted.
_READERS: Mapping[str, Reader] = {
    ".txt": _txt_rows,
    ".json": json_rows,
    ".jsonl": jsonl_rows,
    ".csv": csv_rows,
    ".parquet": parquet_rows,
}
_COLUMNS = {".csv": csv_columns, ".parquet": parquet_columns}
_COMPRESSED = (".gz", ".zst")
# Beside the rows of a data set that was downloaded or saved lie files that describe it.
_NOT_ROWS = frozenset(
    ("dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json")
)
KINDS = f"{', '.join(_READERS)}, each also {' or '.join(_COMPRESSED)}"


def kind_of(path: Path) -> str | None:
    """Return the suffix that says how a file is read; None if it cannot be."""
    name = path.name
    for end in _COMPRESSED:
        name = name.removesuffix(end)
    suffix = Path(name).suffix
    return suffix if suffix in _READERS and path.name not in _NOT_ROWS else None


def stem_of(path: Path) -> str:
    """Return a file's or a folder's name without what says how it is read."""
    name = path.name or path.resolve().name
    for end in (*_COMPRESSED, kind_of(path) or ""):
        name = name.removesuffix(end) if end else name
    return name


@dataclass(frozen=True, slots=True)
class Files:
    """The rows of one file, or of all files of a folder in the order of their names."""

    paths: tuple[Path, ...]

    @classmethod
    def of(cls, path: Path) -> Files:
        """Take a file or a folder.

        :raises PruneError: if there is none, or no file that can be read
        """
        if path.is_dir():
            inside = (Path(at, name) for at, _, names in os.walk(path) for name in names)
            found = tuple(sorted(f for f in inside if _readable(f, path)))
            if not found:
                raise PruneError(f"{path} has no text file in it", hint=f"it reads {KINDS}")
            return cls(found)
        if not path.is_file():
            raise PruneError(f"no text file at {path}")
        if kind_of(path) is None:
            raise PruneError(f"cannot tell what {path} holds", hint=f"it reads {KINDS}")
        return cls((path,))

    def rows(self) -> Iterator[Row]:
        """Yield all rows.

        :raises PruneError: naming the file, and the row, that is not what its name says
        """
        return (row for row in self._rows(None) if row is not None)

    def picked(self, wanted: Wanted) -> Iterator[tuple[int, Row]]:
        """Yield the rows of some numbers, with these; other rows are read over.

        :raises PruneError: as `rows`
        """
        return ((n, row) for n, row in enumerate(self._rows(wanted)) if row is not None)

    def count(self) -> int:
        """Return how many rows there are, by reading over them.

        :raises PruneError: as `rows`
        """
        return sum(1 for _ in self._rows(()))

    def columns(self) -> frozenset[str] | None:
        """Return the columns that the first file says it has; None where rows say it themselves.

        :raises PruneError: as `rows`
        """
        path = self.paths[0]
        read = _COLUMNS.get(kind_of(path) or "")
        with explained(str(path)):
            return None if read is None else read(partial(_open, path), str(path))

    def _rows(self, wanted: Wanted | None) -> Iterator[Row | None]:
        before = 0
        for path in self.paths:
            own = None if wanted is None else _Shifted(wanted, before)
            for row in _file_rows(path, own):
                before += 1
                yield row


@dataclass(frozen=True, slots=True)
class _Shifted:
    """The wanted numbers as one of several files counts them."""

    wanted: Wanted
    before: int

    def __contains__(self, number: object) -> bool:
        return isinstance(number, int) and number + self.before in self.wanted


def _readable(file: Path, folder: Path) -> bool:
    inside = file.relative_to(folder).parts
    return kind_of(file) is not None and not any(part.startswith(".") for part in inside)


def _file_rows(path: Path, wanted: Wanted | None) -> Iterator[Row | None]:
    kind = kind_of(path)
    assert kind is not None
    with explained(str(path)):
        yield from _READERS[kind](partial(_open, path), str(path), wanted)


def _open(path: Path) -> BinaryIO:
    """Open a file for reading what it holds, without its compression."""
    if path.suffix == ".gz":
        return cast(BinaryIO, gzip.open(path))
    if path.suffix == ".zst":
        import pyarrow as pa

        return io.BufferedReader(pa.input_stream(str(path), compression="zstd"))
    return path.open("rb")
