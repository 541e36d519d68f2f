"""Classification of a short passage: which of the six domains is it from?"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator

from benchmarks.testbed.puzzles import Puzzle, Side
from benchmarks.testbed.text import DOMAINS, Corpus

_SHORTEST, _LONGEST = 3, 14  # words


def stream(corpora: dict[str, Corpus], side: Side, seed: int) -> Iterator[Puzzle]:
    """Give endless questions about passages; those for pool and test are from held-out text."""
    rng = random.Random(f"classify {side} {seed}")
    documents = {name: side_documents(corpora[name], side) for name in DOMAINS}
    while True:
        label = rng.choice(DOMAINS)
        passage = _excerpt(rng, rng.choice(documents[label]))
        wrong = rng.sample([name for name in DOMAINS if name != label], 3)
        choices = tuple(rng.sample([label, *wrong], 4))
        yield Puzzle(f"{label} {passage}", f"Text: {passage}\nKind:", label, choices)


def side_documents(corpus: Corpus, side: Side) -> list[str]:
    """Return the documents of a side; held-out ones are divided between pool and test."""
    if side == "train":
        return list(corpus.train)
    test = side == "test"
    return [text for text in corpus.heldout if _in_test(text) == test]


def distinct(corpora: dict[str, Corpus], side: Side, count: int, seed: int = 0) -> list[Puzzle]:
    """Return ``count`` questions without a passage twice; none is also in the training text."""
    trained = {
        name: "\n".join(" ".join(t.split()) for t in corpora[name].train) for name in DOMAINS
    }
    found: dict[str, Puzzle] = {}
    for puzzle in stream(corpora, side, seed):
        passage = puzzle.key.split(" ", 1)[1]
        if passage not in trained[puzzle.answer]:
            found.setdefault(passage, puzzle)
        if len(found) == count:
            return list(found.values())
    raise AssertionError("a stream has no end")


def _excerpt(rng: random.Random, text: str) -> str:
    words = text.split()
    length = rng.randint(_SHORTEST, _LONGEST)
    start = rng.randrange(max(1, len(words) - length + 1))
    return " ".join(words[start : start + length])[:120]


def _in_test(text: str) -> bool:
    return hashlib.sha256(text.encode()).digest()[0] < 128
