"""Rows of JSON files: an object on each line, or an array of them."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator
from contextlib import closing
from typing import Any, BinaryIO

from offline.texts.lines import decoded, lines_of
from offline.texts.row import LONGEST, Row, Skip, told
from vllm_moe_prune.errors import PruneError
from vllm_moe_prune.reading import parse_json

TOO_LONG = f"longer than {LONGEST >> 20} MiB"
_CHUNK = 1 << 16
_DEEPEST = 500  # brackets within one another


def jsonl_rows(
    open_bytes: Callable[[], BinaryIO], place: str, wanted: Container[int] | None
) -> Iterator[Row | None]:
    """Yield the rows of a file with one JSON value a line; blank lines are none."""
    with closing(open_bytes()) as stream:
        count = 0
        for number, line in enumerate(lines_of(stream), start=1):
            if line is not None and not line.strip():
                continue
            wants = wanted is None or count in wanted
            yield _line(line, f"{place} line {number}", number) if wants else None
            count += 1


def _line(line: bytes | None, place: str, number: int) -> Row:
    name = f"line-{number}"
    if line is None:
        return Row(place, name, Skip(TOO_LONG))
    text = decoded(line, place)
    return Row(place, name, parse_json(text, place))


def json_rows(
    open_bytes: Callable[[], BinaryIO], place: str, wanted: Container[int] | None
) -> Iterator[Row | None]:
    """Yield the entries of a JSON array, or JSON values that follow one another."""
    import ijson

    with closing(open_bytes()) as stream:
        guard = _Guard(stream)
        array = guard.starts_with(b"[")
        values = _values(guard, array=array)
        count = 0
        while True:
            where = f"{place} row {count + 1}"
            try:
                value: Any = next(values)
            except StopIteration:
                return
            except (ijson.JSONError, UnicodeDecodeError, ValueError) as error:
                if isinstance(error, PruneError):
                    raise
                first = (str(error).strip().splitlines() or [type(error).__name__])[0]
                raise PruneError(f"{where} is not JSON: {told(first)}") from None
            except _TooLong:
                raise PruneError(
                    f"{where} is {TOO_LONG}",
                    hint="such a row is passed over in .jsonl, and a .txt is read in pieces",
                ) from None
            guard.seen = 0
            wants = wanted is None or count in wanted
            yield Row(where, f"row-{count + 1}", value) if wants else None
            count += 1


def _values(guard: _Guard, *, array: bool) -> Iterator[Any]:
    """Yield the entries of an array, or the values that follow one another.

    ``ijson.items`` is not used: it keeps the path of where it is, which for brackets nested a
    hundred thousand deep takes more memory than there is.
    """
    import ijson
    from ijson.common import ObjectBuilder

    events = ijson.basic_parse(guard, multiple_values=not array, use_float=True)
    if array:
        next(events)  # its beginning
    depth, builder = 0, ObjectBuilder()
    for event, value in events:
        depth -= event.startswith("end_")
        if depth < 0:  # the array's end, behind which there is nothing
            continue
        builder.event(event, value)
        depth += event.startswith("start_")
        if depth > _DEEPEST:
            raise ValueError("nested too deeply")
        if depth == 0:
            yield builder.value
            builder = ObjectBuilder()


class _TooLong(Exception):
    """More was read for one value than a row may have."""


class _Guard:
    """A stream that refuses to read on where one value takes too much; a mark of byte order and
    white space at its beginning are passed over."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self._begun = stream.read(_CHUNK).removeprefix(b"\xef\xbb\xbf").lstrip()
        self.seen = 0

    def starts_with(self, sign: bytes) -> bool:
        return self._begun.startswith(sign)

    def read(self, size: int = -1) -> bytes:
        """Return the next bytes; as many as are there, for a size of 0 none."""
        if size == 0:
            return b""
        block, self._begun = self._begun or self._stream.read(_CHUNK), b""
        self.seen += len(block)
        if self.seen > LONGEST:
            raise _TooLong
        return block
