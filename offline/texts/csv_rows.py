"""Rows of CSV files, whose first row names the columns."""

from __future__ import annotations

import csv
from collections.abc import Callable, Container, Iterator
from contextlib import closing
from typing import BinaryIO

from offline.texts.lines import decoded, lines_of
from offline.texts.row import LONGEST, Row, told
from vllm_moe_prune.errors import PruneError


def csv_columns(open_bytes: Callable[[], BinaryIO], place: str) -> frozenset[str]:
    """Return the names in the first row.

    :raises PruneError: if it cannot be read
    """
    with closing(open_bytes()) as stream:
        return frozenset(next(_records(stream, place), []))


def csv_rows(
    open_bytes: Callable[[], BinaryIO], place: str, wanted: Container[int] | None
) -> Iterator[Row | None]:
    """Yield the rows after the first; a row has as many columns as it has values."""
    with closing(open_bytes()) as stream:
        records = _records(stream, place)
        names = next(records, [])
        for count, values in enumerate(records):
            name = f"row {count + 1}"
            if wanted is not None and count not in wanted:
                yield None
            elif len(values) > len(names):
                raise PruneError(
                    f"{place} {name} has {len(values)} values for {len(names)} columns",
                    hint='a value with commas or line ends stands between quotes: "a, b"',
                )
            else:
                yield Row(f"{place} {name}", f"row-{count + 1}", dict(zip(names, values)))  # noqa: B905 - a short row has no value in its last columns


def _records(stream: BinaryIO, place: str) -> Iterator[list[str]]:
    """Yield the values of each row that is not blank."""
    csv.field_size_limit(LONGEST)
    reader = csv.reader(_lines(stream, place), strict=True)
    count = 0
    while True:
        try:
            values = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise PruneError(f"{place} row {count} is no CSV: {told(error)}") from None
        if values:
            yield values
            count += 1


def _lines(stream: BinaryIO, place: str) -> Iterator[str]:
    for number, line in enumerate(lines_of(stream), start=1):
        where = f"{place} line {number}"
        if line is None:
            raise PruneError(f"{where} is longer than {LONGEST >> 20} MiB")
        yield decoded(line, where)
