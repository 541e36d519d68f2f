"""Names of modules in a quantiser's settings, and what they are after experts have new numbers.

They stand in lists and as keys: whole names, names without what all begin with, wildcards, and
regular expressions with a mark (`re:` of compressed-tensors, `+:` and `-:` of GPTQModel) or
without one (AutoRound).
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from vllm_moe_prune.errors import PruneError
from vllm_moe_prune.module_patterns import ModulePatterns, inner, mark_of

Moves = Mapping[str, str | None]  # module -> its new name, None if it is gone
_WILD = re.compile(r"[*?\[]")
_REGEX = re.compile(r"[\\^$|(]")  # which no wildcard has
_EXPERT = re.compile(r"(.*experts\.\d+)((?:\..*)?)")
_NUMBERED = re.compile(r"experts\\?\.\d")
_FLAGS = re.compile(r"\(\?[aiLmsux]+\)")
_NO_EXPERT = r"(?!.*experts\.\d)"  # for names that are of no single expert


def module_of(name: str) -> str:
    """Return the module that a tensor is of, or the one around a module."""
    return name.rpartition(".")[0]


class Names:
    """Follows entries that name modules to what the modules are called afterwards."""

    def __init__(self, moves: Moves) -> None:
        self._moves = moves
        self._patterns = ModulePatterns()

    def followed(self, value: Any, where: str = "the quantiser") -> Any:
        """Return settings with all names in them, in lists and as keys, as they are afterwards.

        :param where: the file and the key that the settings are from
        :raises PruneError: for an expert that there is not, or a pattern that cannot be read or
            takes too long to match
        """
        if isinstance(value, dict):
            settled: dict[str, Any] = {}
            for key, inside in value.items():
                for new in self.entries(key, where):  # of several that fit, readers take the first
                    settled.setdefault(new, self.followed(inside, inner(where, key)))
            return settled
        if isinstance(value, list):
            found: list[Any] = []
            for one in value:
                is_name = isinstance(one, str)
                found += self.entries(one, where) if is_name else [self.followed(one, where)]
            return found
        return value

    def entries(self, entry: str, where: str) -> list[str]:
        """Return what names the same modules afterwards: one entry, several, or none.

        :raises PruneError: as `followed`
        """
        if entry in self._moves:
            new = self._moves[entry]
            return [] if new is None else [new]
        matches = self._matcher(entry, where)
        if matches is not None:
            return self._of_pattern(entry, matches)
        if not _NUMBERED.search(entry):
            return [entry]
        return self._of_expert(entry)

    def _of_expert(self, entry: str) -> list[str]:
        """Follow a name of something in an expert, or one that begins unlike those in the files."""
        found = _EXPERT.fullmatch(entry)
        expert, tail = (found[1], found[2]) if found else (entry, "")
        candidates = [expert] if expert in self._moves else self._by_tail.get(_tail(expert), [])
        if len(candidates) != 1:
            raise PruneError(
                f"the quantisation settings name {entry}, which is no module of this checkpoint",
                hint="mend the entry in the base's config: experts get new numbers",
            )
        new = self._moves[candidates[0]]
        if new is None:
            return []
        begin = expert.removesuffix(_tail(expert))
        return [begin + _tail(new) + tail]

    @functools.cached_property
    def _by_tail(self) -> Mapping[str, list[str]]:
        """Names from their layer's number on -> whole names."""
        found: dict[str, list[str]] = {}
        for name in self._moves:
            found.setdefault(_tail(name), []).append(name)
        return found

    def _matcher(self, entry: str, where: str) -> Callable[[str], bool] | None:
        """Return what says whether a pattern is about a module; None for a name."""
        mark, _ = _split(entry)
        if mark is None and not _WILD.search(entry):
            return None
        own = self._patterns
        how = own.is_like if mark is None else own.begins if mark else own.is_in
        return partial(how, entry, where)

    def _of_pattern(self, entry: str, matches: Callable[[str], bool]) -> list[str]:
        """Leave a pattern that says the same before and after; else write out what it meant."""
        meant = [name for name in self._moves if matches(name)]
        if meant and all(self._moves[name] is None for name in meant):
            return []
        moved = ((old, new) for old, new in self._moves.items() if new and old != new)
        if all(matches(old) == matches(new) for old, new in moved):
            return [entry]
        mark, regex = _split(entry)
        names = [new for name in meant if _NUMBERED.search(name) and (new := self._moves[name])]
        others = [name for name in meant if not _NUMBERED.search(name)]
        if mark is None:  # a wildcard, which has no way to say "but experts"
            return [*others, *names]
        # One without a mark is searched for, the others are matched from the beginning on.
        begin = _NO_EXPERT if mark else f"^{_NO_EXPERT}.*"
        flags = _FLAGS.match(regex)
        first = flags[0] if flags else ""  # may stand at the beginning only
        rest = [f"{mark}{first}{begin}(?:{regex.removeprefix(first)})"] if others else []
        if mark == "re:":  # beside which whole names may stand
            return [*rest, *names]
        return [*rest, *(f"{mark}^{re.escape(name)}$" for name in names)]


def _tail(name: str) -> str:
    begin = name.find("layers.")
    return name[begin:] if begin >= 0 else name


def _split(entry: str) -> tuple[str | None, str]:
    """Return a regular expression's mark, which may be empty, and itself; None for a wildcard."""
    mark = mark_of(entry)
    is_regex = mark or entry.startswith(".*") or _REGEX.search(entry)
    return (mark, entry.removeprefix(mark)) if is_regex else (None, entry)
