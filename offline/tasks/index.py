"""The names that lm-evaluation-harness knows: tasks, groups and tags, by a look at its YAML files.

lm-eval's own index parses 14,000 files, which takes half a minute, and imports torch. Names need
five keys at the left margin; one file is parsed as YAML when its task is asked for.
"""

from __future__ import annotations

import difflib
import functools
import importlib.util
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from vllm_moe_prune.errors import PruneError

NameKind = Literal["task", "group", "tag"]
_SKIPPED = {"__pycache__", ".ipynb_checkpoints"}
_KEY = re.compile(
    rb"""^["']?(task|group|class|tag|include)["']?[ \t]*:[ \t]*([^\r\n]*)""", re.MULTILINE
)
_LIST_ITEM = re.compile(rb"\r?\n[ \t]*-[ \t]+([^\r\n]*)|\r?\n[ \t]*(?:#[^\r\n]*)?(?=\r?\n)")
_QUOTED_OR_NOTED = re.compile("[\"'#]")
_SCALAR = re.compile(r"""(?:"([^"]*)"|'([^']*)'|([^\s#][^#]*?))[ \t]*(?:#.*)?""")
_CLOSEST = 3


@dataclass(slots=True)
class Entry:
    """What a name stands for: the file that says it, and of a tag the names of its tasks."""

    name: str
    kind: NameKind
    file: str | None
    members: set[str] = field(default_factory=set)


Index = Mapping[str, Entry]


def folders(include: tuple[Path, ...] = ()) -> tuple[Path, ...]:
    """Return where tasks lie: lm-eval's own, this package's, and the user's, which go before.

    :raises PruneError: if one of the user's is no folder
    """
    for folder in include:
        if not folder.is_dir():
            raise PruneError(
                f"--include-path {folder}: no such folder", hint="a folder of lm-eval YAML files"
            )
    spec = importlib.util.find_spec("lm_eval")  # imports nothing
    found = (
        [Path(place) / "tasks" for place in spec.submodule_search_locations or ()] if spec else []
    )
    own = Path(__file__).with_name("paper")
    return (*found, *([own] if own.is_dir() else []), *(folder.resolve() for folder in include))


def read_index(places: tuple[Path, ...]) -> Index:
    """Return name -> entry of all YAML files below some folders; of two, the later folder's."""
    installed = folders()
    index: dict[str, Entry] = {}
    for folder in places:
        index |= _kept(folder) if folder in installed else _Folder().read(folder)
    return index


@functools.cache
def _kept(folder: Path) -> Index:
    return _Folder().read(folder)


def closest(name: str, index: Iterable[str]) -> list[str]:
    """Return the known names that are most like a name that is not known."""
    names = list(index)
    same = [known for known in names if known.lower() == name.lower()]
    if same:
        return same[:_CLOSEST]
    near = [known for known in names if abs(len(known) - len(name)) <= max(3, len(name) // 2)]
    return difflib.get_close_matches(name, near, n=_CLOSEST)


class _Folder:
    """Reads one folder by lm-eval's rules: sorted by path, the first of a name counts."""

    def __init__(self) -> None:
        self._index: dict[str, Entry] = {}
        self._keys: dict[str, dict[str, list[str]] | None] = {}

    def read(self, folder: Path) -> dict[str, Entry]:
        for file in sorted(_yaml_files(folder)):
            keys = self._merged(file)
            if keys is not None:
                self._add(file, keys)
        return self._index

    def _add(self, file: str, keys: Mapping[str, list[str]]) -> None:
        kind: NameKind = "group" if "group" in keys and "class" not in keys else "task"
        name = _scalar(keys.get(kind))
        if name is None or name in self._index:
            return
        self._index[name] = Entry(name, kind, file)
        for tag in filter(None, keys.get("tag", ()) if kind == "task" else ()):
            self._index.setdefault(tag, Entry(tag, "tag", None)).members.add(name)

    def _merged(self, file: str, above: tuple[str, ...] = ()) -> dict[str, list[str]] | None:
        """Return the keys of a file and of what it includes; None if something cannot be read."""
        if file in self._keys:
            return self._keys[file]
        found: dict[str, list[str]] | None = None
        own = _keys_of(file)
        if own is not None and file not in above:
            found = {}
            for name in filter(None, own.pop("include", ())):
                place = os.path.normpath(f"{file.rpartition('/')[0]}/{name}")
                included = self._merged(place, (*above, file))
                if included is None:
                    found = None
                    break
                found |= included
            if found is not None:
                found |= own
        self._keys[file] = found
        return found


def _yaml_files(folder: Path) -> Iterator[str]:
    for place, folders_here, files in os.walk(folder):
        folders_here[:] = [name for name in folders_here if name not in _SKIPPED]
        yield from (f"{place}/{name}" for name in files if name.endswith(".yaml"))


def _keys_of(file: str) -> dict[str, list[str]] | None:
    """Return the five keys at the left margin with their values; None if there is no such file."""
    try:
        with open(file, "rb") as stream:  # noqa: PTH123  # a `Path` for each costs a second
            content = stream.read()
    except OSError:
        return None
    found: dict[str, list[str]] = {}
    for match in _KEY.finditer(content):
        raw = match[2].strip()
        if raw.startswith(b"["):
            values = raw.strip(b"[]").split(b",")
        elif raw and not raw.startswith(b"#"):
            values = [raw]
        else:
            values = [b"", *_items(content, match.end())]  # the first says that it is a list
        found[match[1].decode()] = [_plain(value) for value in values]
    return found


def _items(content: bytes, at: int) -> Iterator[bytes]:
    while match := _LIST_ITEM.match(content, at):
        if match[1] is not None:
            yield match[1]
        at = match.end()


def _plain(raw: bytes) -> str:
    text = raw.decode().strip()
    if not _QUOTED_OR_NOTED.search(text):
        return text
    match = _SCALAR.fullmatch(text)
    return next(part for part in match.groups() if part is not None) if match else ""


def _scalar(values: list[str] | None) -> str | None:
    return values[0] if values is not None and len(values) == 1 and values[0] else None
