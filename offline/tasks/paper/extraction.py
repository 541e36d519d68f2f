"""What counts of a generated answer, by the rules of EEP's evaluation (OpenCompass). Pure.

The functions at the end are lm-eval's custom filters: named in the YAML files beside this one.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import Any

Filter = Callable[[Iterable[Iterable[str]], Any], list[list[str]]]

NO_NUMBER = "NULL"  # what the rule for numbers answers where there is none
_SAYS = (
    "answer is",
    "answer is option",
    "correct answer is",
    "correct answer is option",
    "answer to the question is",
)


def capital_of(text: str) -> str:
    """Return the first capital letter of any script, also one inside a word; "" without one."""
    return next((letter for letter in text if letter.isupper()), "")


def option_of(text: str, options: str) -> str:
    """Return the option that an answer names, "" if it names none.

    The rules go from the surest to the weakest; the first one that fits decides, wherever it does
    so in the text. Of several options in what fits, the first in the order of ``options`` counts.
    The rules of OpenCompass for answers in Chinese are not among these.

    :param options: capital letters, in order: ``ABCD``
    """
    for rule in _option_rules(options):
        found = re.search(rule, text)
        named = [option for option in options if found and option in found[0]]
        if named:
            return named[0]
    return ""


def _option_rules(options: str) -> tuple[str, ...]:
    one = f"[{options}]"
    begins = rf"\A{one}[\s:,\uff0c\uff1a]"  # the answer opens with it (EEP's own addition)
    ends = rf"[\s:,\uff0c\uff1a]{one}[.,\u3002\uff0c]?$"
    says = (rf"[Tt]he {said} \(?{one}\)?" for said in _SAYS)
    alone = rf"(?:\s|^){one}(?:[\s.:,$\u3002\uff0c\uff1a]|$)"
    numbered = r"1.\s?.*$"  # "1. (B)"
    return begins, ends, *says, alone, numbered, f"{one}:", one


def number_of(text: str) -> str:
    """Return the last number before the next question, as written; NULL if there is none.

    There are no signs of thousands: ``1,250`` ends in the number ``250``.
    """
    numbers = re.findall(r"-?\d+\.\d+|-?\d+", text.split("Question:")[0])
    return numbers[-1] if numbers else NO_NUMBER


def entity_of(text: str) -> str:
    """Return the first line that is not empty, without ``Answer:``."""
    return text.strip().split("\n")[0].replace("Answer: ", "").strip()


def statement_of(text: str) -> str:
    """Return the first line in lower case, from behind the last ``answer is`` on."""
    return text.split("\n")[0].lower().rsplit("answer is", 1)[-1]


def general(text: str) -> str:
    """Return a text up to its first line end, point or comma, without punctuation and articles."""
    return without_articles(re.split(r"[\n.,]", text, maxsplit=1)[0])


def without_articles(text: str) -> str:
    """Return the words of a first line without punctuation and English articles; case stays."""
    words = re.sub(r"[^\w\s]", "", text.split("\n", 1)[0])
    words = re.sub(r"\b(?:a|an|the)\b", "", words, flags=re.IGNORECASE)
    return " ".join(words.split())


def _filter(extract: Callable[[str], str]) -> Filter:
    def apply(responses: Iterable[Iterable[str]], docs: Any) -> list[list[str]]:
        return [[extract(text) for text in texts] for texts in responses]

    return apply


first_capital = _filter(capital_of)
option_ab = _filter(lambda text: option_of(text, "AB"))
option_abc = _filter(lambda text: option_of(text, "ABC"))
option_abcd = _filter(lambda text: option_of(text, "ABCD"))
last_number = _filter(number_of)
entity = _filter(entity_of)
statement = _filter(statement_of)
