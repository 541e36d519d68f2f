"""Rows of Parquet files, read a few at a time."""

from __future__ import annotations

import io
import shutil
import tempfile
from collections.abc import Callable, Container, Iterator
from contextlib import closing, contextmanager
from itertools import repeat
from typing import Any, BinaryIO

from offline.texts.json_rows import TOO_LONG
from offline.texts.row import LONGEST, Row, Skip, told
from vllm_moe_prune.errors import PruneError

_AT_ONCE = 8 << 20  # bytes of rows that are in memory together, about


def parquet_columns(open_bytes: Callable[[], BinaryIO], place: str) -> frozenset[str]:
    """Return the names of the columns.

    :raises PruneError: if the file is no Parquet
    """
    with _opened(open_bytes, place) as file:
        return frozenset(file.schema_arrow.names)


def parquet_rows(
    open_bytes: Callable[[], BinaryIO], place: str, wanted: Container[int] | None
) -> Iterator[Row | None]:
    """Yield the rows; groups of rows of which none is wanted are not read."""
    with _opened(open_bytes, place) as file:
        begin = 0
        for group in range(file.num_row_groups):
            count = file.metadata.row_group(group).num_rows
            numbers = range(begin, begin + count)
            if wanted is not None and not any(n in wanted for n in numbers):
                yield from repeat(None, count)
            else:
                for number, row in zip(numbers, _group(file, group, begin, place), strict=True):
                    yield row if wanted is None or number in wanted else None
            begin += count


def _group(file: Any, group: int, begin: int, place: str) -> Iterator[Row]:
    """Yield the rows of one group."""
    import pyarrow as pa

    about = file.metadata.row_group(group)
    each = about.total_byte_size // max(about.num_rows, 1)
    names = [(f"{place} row {n + 1}", f"row-{n + 1}") for n in range(begin, begin + about.num_rows)]
    if each > LONGEST:  # a value is in memory whole, so these are not read at all
        yield from (Row(where, name, Skip(TOO_LONG)) for where, name in names)
        return
    size = min(max(_AT_ONCE // max(each, 1), 1), 1024)
    batches = file.iter_batches(size, row_groups=[group], use_threads=False)
    number = 0
    while number < len(names):
        try:
            rows = next(batches).to_pylist()
        except (pa.ArrowException, OSError, ValueError) as error:
            raise PruneError(f"{names[number][0]} cannot be read: {told(error)}") from None
        for row in rows:
            yield Row(*names[number], without_nulls(row))
            number += 1


def without_nulls(row: dict[str, Any]) -> dict[str, Any]:
    """Return a row's columns, in which Arrow gives every struct all the fields that any has."""
    return {name: _filled(value) for name, value in row.items()}


def _filled(value: Any) -> Any:
    """Return a value without null fields; a message that says nothing says so by null."""
    if isinstance(value, dict):
        return {k: _filled(v) for k, v in value.items() if v is not None or k == "content"}
    if isinstance(value, list):
        return [_filled(entry) for entry in value]
    return value


@contextmanager
def _opened(open_bytes: Callable[[], BinaryIO], place: str) -> Iterator[Any]:
    """Open a Parquet file, whose end is read first: one that is compressed is unpacked to disk."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    with closing(open_bytes()) as stream, tempfile.TemporaryFile() as unpacked:
        given = stream
        if not isinstance(getattr(stream, "raw", None), io.FileIO):
            shutil.copyfileobj(stream, unpacked)
            given = unpacked
        try:
            file = pq.ParquetFile(given, pre_buffer=False, buffer_size=1 << 16)
        except (pa.ArrowException, OSError, ValueError) as error:
            raise PruneError(f"{place} is no Parquet file: {told(error)}") from None
        yield file
