"""`ModulePatterns`: patterns by which a quantiser's settings name modules, matched within a time.

They come with a foreign checkpoint, and there are regular expressions that no module name is too
short for: `(a|aa)+$`. The library that matches them gives up when it is told to, as `re` does not;
vLLM has some of them matched by it as well. What it takes otherwise is held by size: of a pattern,
and of what it comes to when repeats are written out, which this library does.
"""

from __future__ import annotations

import math
import re
import time
import warnings
from fnmatch import translate
from typing import Any, Literal

from vllm_moe_prune.errors import PruneError

_MARKS = ("re:", "+:", "-:")  # of compressed-tensors, and of GPTQModel
_SECONDS = 0.5  # of this thread that all matches together may take,
_EACH = 50e-6  # and so much more for each: an ordinary one takes a tenth of it
_LONGEST = 2000  # letters
_WRITTEN_OUT = 50_000  # letters
_REPEATED = re.compile(r"\{(\d+)[,}]")
# Where `re` reads a brace as itself and the other library may find errors that are allowed.
_BRACE = re.compile(r"(\\.)|\{(?!\d+(?:,\d*)?\}|,\d*\})", re.DOTALL)


class ModulePatterns:
    """Matches the patterns of one checkpoint's settings, all within one time.

    In what is said of a pattern, ``where`` is the file and the key that it stands in.
    """

    def __init__(self) -> None:
        self._left = _SECONDS
        self._expressions: dict[str, Any] = {}
        self._wildcards: dict[str, re.Pattern[str]] = {}

    def begins(self, entry: str, where: str, name: str) -> bool:
        """Whether a regular expression, behind a mark or not, matches a name from its first letter.

        :raises PruneError: if it cannot be read, or takes too long
        """
        return self._asked("match", entry, where, name)

    def is_in(self, entry: str, where: str, name: str) -> bool:
        """Whether a regular expression matches anywhere in a name.

        :raises PruneError: as `begins`
        """
        return self._asked("search", entry, where, name)

    def is_like(self, entry: str, where: str, name: str) -> bool:
        """Whether a wildcard is like a name, as `fnmatch.fnmatchcase` has it.

        :raises PruneError: if it is too long
        """
        if entry not in self._wildcards:  # their translation takes the square of their length
            _check_length(entry, len(entry), _LONGEST, where)
            self._wildcards[entry] = re.compile(translate(entry))
        return self._wildcards[entry].match(name) is not None

    def _asked(self, how: Literal["match", "search"], entry: str, where: str, name: str) -> bool:
        began = time.thread_time()
        try:
            if entry not in self._expressions:
                self._expressions[entry] = _compiled(entry, where)
            found = getattr(self._expressions[entry], how)(name, timeout=self._left)
        except (TimeoutError, MemoryError):
            raise _too_long(entry, where) from None
        self._left = min(_SECONDS, self._left + _EACH - (time.thread_time() - began))
        if self._left <= 0:
            raise _too_long(entry, where)
        return found is not None


def mark_of(entry: str) -> str:
    """Return the mark before a regular expression; nothing where there is none."""
    return next((mark for mark in _MARKS if entry.startswith(mark)), "")


def inner(where: str, key: str) -> str:
    """Return where the entry of a key is: ``config.json: quantization_config.ignore``."""
    return f"{where}.{key}" if ": " in where else f"{where}: {key}"


def _compiled(entry: str, where: str) -> Any:
    """Compile what both libraries can read, to mean what it means to `re`."""
    import regex

    pattern = entry.removeprefix(mark_of(entry))
    _check_length(entry, len(pattern), _LONGEST, where)
    repeats = math.prod(max(1, int(count)) for count in _REPEATED.findall(pattern))
    _check_length(entry, len(pattern) * repeats, _WRITTEN_OUT, where)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of what may mean something else one day
            re.compile(pattern)
            return regex.compile(_BRACE.sub(lambda found: found[1] or r"\{", pattern))
    except (re.error, regex.error, OverflowError, RecursionError) as error:
        raise PruneError(
            f"{where} has the pattern {entry}, which cannot be read: {error}",
            hint="mend it in the base's settings",
        ) from None


def _check_length(entry: str, letters: int, most: int, where: str) -> None:
    if letters > most:
        raise PruneError(
            f"{where} has the pattern {entry}, which is too long",
            hint="mend it in the base's settings",
        )


def _too_long(entry: str, where: str) -> PruneError:
    return PruneError(
        f"{where} has the pattern {entry}, which takes too long to match",
        hint="mend it in the base's settings: what repeats should not hold what repeats",
    )
