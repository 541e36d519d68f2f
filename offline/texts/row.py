"""`Row`: one entry of a source, before anything is made of it; `Skip`: why none can be."""

from __future__ import annotations

import codecs
import io
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import Any, BinaryIO

from vllm_moe_prune.errors import PruneError

LONGEST = 16 << 20  # bytes of a row in a structured file; a longer one would cost memory
_CHUNK = 1 << 20  # bytes of a text that are read at once
_LONGEST_TOLD, _MOST_TOLD = 160, 12  # characters of what is quoted, and names


class Skip(Exception):
    """A row that gives no text; ``str`` is the reason by which such rows are counted."""


@dataclass(frozen=True, slots=True)
class Row:
    """One entry of a source.

    ``place`` names it for people ("notes.jsonl line 3"), ``name`` within its file ("line-3").
    ``content`` is what the source holds: a mapping of columns, a text, a `LongText`, a `Skip` where
    it is known already that nothing can be made of it, or any other value that a file may hold.
    """

    place: str
    name: str
    content: Any


@dataclass(frozen=True, slots=True)
class LongText:
    """The text of a file as one document that is read in chunks, as often as it is asked for.

    :param place: what to call it
    :param open_bytes: begins anew with every call
    """

    place: str
    open_bytes: Callable[[], BinaryIO]

    def chunks(self) -> Iterator[str]:
        """Yield the text in UTF-8, without a byte-order mark, its line ends as ``\\n``.

        :raises PruneError: if it cannot be read or is no text
        """
        decoder = codecs.getincrementaldecoder("utf-8-sig")()
        lines = io.IncrementalNewlineDecoder(decoder, translate=True)
        done = 0
        with explained(self.place), closing(self.open_bytes()) as stream:
            while True:
                block = stream.read(_CHUNK)
                done += len(block)
                try:
                    text = lines.decode(block, final=not block)
                except UnicodeDecodeError as error:
                    at = done - len(error.object) + error.start
                    raise PruneError(f"{self.place} is no text in UTF-8 (byte {at})") from None
                if text:
                    yield text
                if not block:
                    return

    def __str__(self) -> str:
        return "".join(self.chunks())


def told(said: object) -> str:
    """Return what a library says, or a file holds, as a part of one line that can be printed."""
    line = " ".join(str(said).split())
    short = line if len(line) <= _LONGEST_TOLD else line[:_LONGEST_TOLD] + " ..."
    printable = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in short)
    return printable or type(said).__name__


def listed(names: Iterable[object]) -> str:
    """Return the names of columns as a part of one line."""
    every = [told(name) for name in names]
    more = [f"and {len(every) - _MOST_TOLD} more"] if len(every) > _MOST_TOLD else []
    return ", ".join([*every[:_MOST_TOLD], *more]) or "none"


@contextmanager
def explained(place: str) -> Iterator[None]:
    """Say in one line what stops a file from being read.

    :raises PruneError: naming it
    """
    try:
        yield
    except (OSError, EOFError, zlib.error) as error:
        said = getattr(error, "strerror", None) or error
        raise PruneError(f"cannot read {place}: {told(said)}") from None


def is_blank(text: str | LongText) -> bool:
    """Whether a text is white space alone; reads no more of it than it takes to know."""
    return not any(chunk.strip() for chunk in chunks_of(text))


def chunks_of(text: str | LongText) -> Iterator[str]:
    """Yield a text in one piece or more."""
    if isinstance(text, LongText):
        yield from text.chunks()
    else:
        yield text
