"""How EEP scores what was extracted of an answer: lm-eval's ``process_results``. Pure.

``acc`` is the score of the released evaluation in all tasks; where that is looser than comparing
the whole answer, ``exact_match`` is the stricter one beside it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from offline.tasks.paper.extraction import general, without_articles


def same(doc: Mapping[str, Any], results: Sequence[str]) -> dict[str, float]:
    """Score a letter: it is the right one or it is not."""
    return {"acc": float(results[0] in doc["golds"])}


def names_gold(doc: Mapping[str, Any], results: Sequence[str]) -> dict[str, float]:
    """Score a number (DROP) or an entity (ReCoRD): any right answer lies within it.

    The released evaluation calls this EM; it takes 15 for a right 5. ``exact_match`` does not.
    """
    (answer,) = results
    golds = [str(gold) for gold in doc["golds"]]
    said = general(answer)
    return {
        "acc": float(_lies_within({*map(general, golds), *golds}, said)),
        "exact_match": _exact(golds, answer),
    }


def states_gold(doc: Mapping[str, Any], results: Sequence[str]) -> dict[str, float]:
    """Score a statement (SQuAD): any right answer lies within it; case does not count."""
    (answer,) = results
    golds = [str(gold).lower() for gold in doc["golds"]]
    return {
        "acc": float(_lies_within(map(without_articles, golds), general(answer))),
        "exact_match": _exact(golds, answer),
    }


def _lies_within(golds: Iterable[str], said: str) -> bool:
    # A right answer that is nothing but an article lies in every text, so it decides nothing.
    return any(gold in said for gold in golds if gold)


def _exact(golds: Iterable[str], answer: str) -> float:
    """Compare whole answers: numbers by value, others without punctuation and articles."""
    said = _whole(answer)
    return float(said != "" and any(said == _whole(gold) for gold in golds))


def _whole(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return without_articles(text.strip())
