"""Lines of a file in UTF-8, none longer than a row may be."""

from __future__ import annotations

from collections.abc import Iterator
from typing import BinaryIO

from offline.texts.row import LONGEST
from vllm_moe_prune.errors import PruneError

_MARK = b"\xef\xbb\xbf"  # of byte order, which some editors write


def lines_of(stream: BinaryIO) -> Iterator[bytes | None]:
    """Yield a stream's lines with their ends, None for those that are longer than `LONGEST`."""
    first = True
    while line := stream.readline(LONGEST):
        whole = len(line) < LONGEST or line.endswith(b"\n")
        part = line
        while not whole and part and not part.endswith(b"\n"):
            part = stream.readline(LONGEST)
        yield (line.removeprefix(_MARK) if first else line) if whole else None
        first = False


def decoded(line: bytes, place: str) -> str:
    """Return a line as text.

    :raises PruneError: naming the place, if it is no UTF-8
    """
    try:
        return line.decode()
    except UnicodeDecodeError as error:
        raise PruneError(f"{place} is no text in UTF-8 (its byte {error.start})") from None
