"""Whether a generated text is a right answer. Pure."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable

from offline.tasks.task import Metric

_ARTICLES = {"a", "an", "the"}
_BEFORE, _AFTER = "([{,;:!?", ")]}.,;:!?"  # not the sign and not the point before a digit


def normalised(text: str) -> str:
    """Return the words of a text without case, articles and the punctuation around them.

    SQuAD's rule, except that it deletes all punctuation: here -5 and 3.5 stay what they are.
    """
    text = unicodedata.normalize("NFKC", text).casefold()
    text = re.sub(r"[\"'`\u2018\u2019\u201c\u201d]", "", text)
    stripped = (word.lstrip(_BEFORE).rstrip(_AFTER) for word in text.split())
    words = [word for word in stripped if word]
    # An article that stands alone is an answer: "A" of "A, B or C?".
    return " ".join([word for word in words if word not in _ARTICLES] or words)


def is_right(metric: Metric, text: str, answers: Iterable[str]) -> bool:
    """Return whether any of the right answers is what the text says.

    ``exact_match`` compares the whole text, ``first_word`` its first word, ``contains`` looks for
    the answer anywhere in its first line, also inside a word (EEP, released evaluation of SQuAD).
    """
    golds = {gold for answer in answers if (gold := normalised(answer))}
    text = text.strip()
    if metric == "contains":
        line = normalised(text.split("\n", 1)[0])
        return any(gold in line for gold in golds)
    if metric == "first_word":
        # Split as written: "don't" is a word, "end.Then" is two.
        found = re.match(r"[\W_]*([^\s.,;:!?\"]+)", text)
        return found is not None and normalised(found[1]) in golds
    assert metric == "exact_match", metric
    return normalised(text) in golds
