"""Whether a written answer has the form of a right one: what instructions are followed for. Pure.

A pruned model often still knows, but answers at length or with something else (MC-Suite, section
5): such an answer counts as wrong, and this tells it from a wrong one in the right form.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from offline.tasks.answers import normalised

_NUMBER = re.compile(r"[+-]?[\d.,]*\d%?")


@dataclass(frozen=True, slots=True)
class Form:
    """What right answers have in common: how long they are, and whether they are numbers."""

    most_words: int
    numbers: bool

    @classmethod
    def of(cls, answers: Iterable[str]) -> Form:
        """Read the form from right answers, those of all items together."""
        texts = [text for answer in answers if (text := normalised(answer))]
        assert texts, "no right answer has a word"
        return cls(max(len(text.split()) for text in texts), all(map(_is_number, texts)))

    def fits(self, text: str) -> bool:
        """Return whether a text has this form; a right answer always has it."""
        said = normalised(text)
        if not said or len(said.split()) > self.most_words:
            return False
        return not self.numbers or _is_number(said)


def _is_number(text: str) -> bool:
    return all(_NUMBER.fullmatch(word) for word in text.split())
