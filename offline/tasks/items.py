"""One question of a task, as every engine is asked it."""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Item:
    """One item; ``query`` is the whole prompt, or the passage of a ``text`` task.

    ``gold`` is the number of the right one among ``choices``, -1 where there are none;
    ``answers`` are the right texts of a ``generate`` task.
    """

    id: str
    query: str
    choices: tuple[str, ...] = ()
    gold: int = -1
    answers: tuple[str, ...] = ()

    @property
    def answer(self) -> str:
        """Return a right answer; nothing where there is only a text."""
        if self.choices:
            return self.choices[self.gold]
        return self.answers[0] if self.answers else ""

    @property
    def key(self) -> str:
        """The question without case, spacing and the punctuation of prose; operators stay."""
        text = unicodedata.normalize("NFKC", self.query).casefold()
        return " ".join(re.sub(r"[.,;:!?'\"`]", " ", text).split())
