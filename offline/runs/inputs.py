"""What a command reads, as far as it lies in what the command is about to replace."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path

Identity = tuple[int, int]
_WHOLE = ("config.json", "routing_map.json", "scores.json")  # of what is one thing, with its files


def input_within(out: Path, inputs: Iterable[object]) -> Path | None:
    """Return the first input that is ``out`` or lies in it; None if there is none.

    :param inputs: paths, and words that may name files (``text:FILE``, ``code=FILE:64``,
        ``FILE#column``, ``task.yaml@5``), several with commas between them; all else is passed over
    """
    place = _identity(out)
    if place is None:
        return None
    for given in inputs:
        for path in _paths(given):
            if any(_lies_in(one, place) for one in (path, *_links(path))):
                return path
    return None


def input_around(out: Path, inputs: Iterable[object]) -> Path | None:
    """Return the first model, map or scores in whose folder ``out`` would lie; None if in none.

    :param inputs: as `input_within`; folders of other things may be around it
    """
    around = [found for one in out.resolve().parents if (found := _identity(one)) is not None]
    for given in inputs:
        for path in _paths(given):
            is_whole = any((path / name).is_file() for name in _WHOLE)
            if is_whole and _identity(path) in around:
                return path
    return None


def _paths(given: object) -> Iterator[Path]:
    if isinstance(given, Path):
        yield given
    elif isinstance(given, str):
        for piece in dict.fromkeys((given, *given.split(","))):
            yield from _named(piece.strip())


def _named(word: str) -> Iterator[Path]:
    """Yield the files that a word may name, with what may stand before and behind a name."""
    starts = (word, word.partition("=")[2], word.partition(":")[2])
    for start in dict.fromkeys(starts):
        ends = (start.rpartition(sign)[0] for sign in ":@#")
        for name in dict.fromkeys((start, *ends)):
            if ("/" in name or "." in name) and _identity(Path(name)) is not None:
                yield Path(name)


def _links(folder: Path) -> Iterator[Path]:
    """Yield a folder's links to files: a model may be one of links to files elsewhere."""
    try:
        for entry in os.scandir(folder):
            if entry.is_symlink() and entry.is_file():
                yield Path(entry.path)
    except OSError:  # not a folder
        return


def _lies_in(path: Path, place: Identity) -> bool:
    """Whether a path is a folder or lies in it, by name and behind all links."""
    for one in (Path(os.path.normpath(path.absolute())), path.resolve()):
        if any(_identity(part) == place for part in (one, *one.parents)):
            return True
    return False


def _identity(path: Path) -> Identity | None:
    try:
        found = path.stat()
    except (OSError, ValueError):  # also of a word that no file could have for a name
        return None
    return found.st_dev, found.st_ino
