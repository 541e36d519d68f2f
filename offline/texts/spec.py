"""``[NAME=]SOURCE[:SEQUENCES],...``: which text is wanted, and how much of it."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from offline.texts.files import KINDS, kind_of, stem_of
from offline.texts.hub_rows import parse_name
from offline.texts.mixes import MIXES
from vllm_moe_prune.errors import PruneError

HUB = "hf:"
TASK = "task:"
_PART = re.compile(r"(?:(?P<name>[\w.@-]+)=)?(?P<source>[^=]+?)(?::(?P<sequences>\d{1,15}))?")
PACK_HELP = (
    "documents of the text are joined and cut as they come, or a sequence is the beginning of one "
    "document  [default: joined, where a mix does not say otherwise]"
)
_GRAMMAR = "[NAME=]SOURCE[:SEQUENCES]"


@dataclass(frozen=True, slots=True)
class Part:
    """One part of a mixture: where a domain's text is, and how many sequences are wanted of it.

    :param length: tokens of a sequence, where a mix says so itself
    :param pack: whether documents share sequences, where a mix says so itself
    """

    name: str
    source: str
    sequences: int
    length: int | None = None
    pack: bool | None = None


@dataclass(frozen=True, slots=True)
class Grammar:
    """How the parts of one flag are read.

    :param flag: to name in errors
    :param sequences: of each part that does not say how many
    :param task: returns what to call ``task:NAME``, and refuses what is no task; None where tasks
        are no source
    :param plain: whether text without an answer is a source, as that of the demo's domains
    """

    flag: str
    sequences: int
    task: Callable[[str], str] | None = None
    plain: bool = True

    def parts(self, spec: str) -> tuple[Part, ...]:
        """Read the parts; reads no text.

        :raises PruneError: if a part is no source or two domains have one name
        """
        parts = tuple(part for text in spec.split(",") for part in self._part(text.strip()))
        names = [part.name for part in parts]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise PruneError(
                f"{self.flag} {spec}: two domains are called {twice}",
                hint=f"give one another name: other={parts[names.index(twice)].source}",
            )
        return parts

    def _part(self, text: str) -> Iterator[Part]:
        from offline.data.domains import DOMAINS

        found = _PART.fullmatch(text)
        if found is None:
            raise PruneError(f"{self.flag}: cannot read {text!r}", hint=_GRAMMAR)
        name, source, given = found["name"], found["source"], found["sequences"]
        count = self.sequences if given is None else int(given)
        if count < 1:
            raise PruneError(f"{self.flag} {text}: at least one sequence is needed")
        if source in MIXES:
            yield from self._mix(text, name, source, None if given is None else count)
        elif split_column(source)[0] in (*MIXES, *DOMAINS) and source not in DOMAINS:
            raise PruneError(f"{self.flag} {text}: {split_column(source)[0]} has no columns")
        elif source in DOMAINS:
            yield Part(name or source, source, count)
        elif source.startswith(TASK) and self.task is not None:
            own = self.task(source.removeprefix(TASK))
            yield Part(name or own, source, count)
        else:
            yield Part(name or self._name(text, source), source, count)

    def _mix(self, text: str, name: str | None, mix: str, count: int | None) -> Iterator[Part]:
        entries = MIXES[mix]
        if name is not None and len(entries) > 1:
            raise PruneError(f"{self.flag} {text}: {mix} is several domains with own names")
        for entry in entries:
            sequences = count or entry.sequences or self.sequences
            yield Part(name or entry.name, entry.source, sequences, entry.length, entry.pack)

    def _name(self, text: str, source: str) -> str:
        """Return what to call a file, a folder or a data set of the hub."""
        from offline.data.domains import DOMAINS

        base, _ = split_column(source)
        if base.startswith(HUB):
            return parse_name(base.removeprefix(HUB)).short
        path = Path(base)
        if path.is_dir() or path.is_file():
            if path.is_file() and kind_of(path) is None:
                raise PruneError(
                    f"{self.flag} {text}: cannot tell what {base} holds", hint=f"known are {KINDS}"
                )
            return stem_of(path)
        if kind_of(path) is not None or "/" in base:
            raise PruneError(f"{self.flag} {text}: no text file at {base}")
        known = ", ".join((*MIXES, *(DOMAINS if self.plain else ())))
        tasks = "; task:NAME" if self.task is not None else ""
        raise PruneError(
            f"{self.flag}: unknown source {source!r}",
            hint=f"known: {known}{tasks}; hf:Org/Name; or the path of a file ({KINDS}) or a folder",
        )


def split_column(source: str) -> tuple[str, str | None]:
    """Return a source and the column that is named behind it, as ``SOURCE#COLUMN``."""
    if Path(source).exists():  # a file may have the sign in its name
        return source, None
    base, sign, column = source.rpartition("#")
    return (base, column) if sign and base and column else (source, None)


def is_read_whole(source: str) -> bool:
    """Whether a source is a domain of the demo or a task, of which no beginning is looked at."""
    from offline.data.domains import DOMAINS

    return source in DOMAINS or source.startswith(TASK)
