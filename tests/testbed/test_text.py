from __future__ import annotations

import pytest

from benchmarks.testbed import passages
from benchmarks.testbed.puzzles import Side
from benchmarks.testbed.text import DOMAINS, Corpus, split


def _corpora() -> dict[str, Corpus]:
    """Made-up text: each domain has words of its own."""
    return {
        name: split(
            name,
            (
                (f"key {number // 3}", " ".join(f"{name}{number}x{at}" for at in range(40)))
                for number in range(900)
            ),
        )
        for name in DOMAINS
    }


@pytest.fixture(scope="module")
def corpora() -> dict[str, Corpus]:
    return _corpora()


def test_a_tenth_is_held_out_and_no_key_is_on_both_sides(corpora: dict[str, Corpus]) -> None:
    def keys(texts: tuple[str, ...]) -> set[int]:
        return {int(text.removeprefix("wiki").split("x")[0]) // 3 for text in texts}

    corpus = corpora["wiki"]
    assert len(corpus.train) + len(corpus.heldout) == 900
    assert 45 < len(corpus.heldout) < 150
    assert not keys(corpus.train) & keys(corpus.heldout)


def test_the_split_does_not_depend_on_order_or_on_other_documents() -> None:
    documents = [(str(number), f"a document with the number {number} " * 2) for number in range(99)]
    whole = split("any", iter(documents))
    assert split("any", reversed(documents)) == whole
    assert set(split("any", iter(documents[:50])).heldout) <= set(whole.heldout)


def test_passages_of_the_pool_and_the_test_are_from_different_held_out_text(
    corpora: dict[str, Corpus],
) -> None:
    def words_of(side: Side) -> set[str]:  # but the last word, which may be cut
        asked = passages.distinct(corpora, side, 300)
        return {word for puzzle in asked for word in puzzle.key.split()[1:-1]}

    words = words_of("pool")
    assert not words & words_of("test")
    trained = {word for corpus in corpora.values() for t in corpus.train for word in t.split()}
    assert not words & trained


def test_the_label_of_a_passage_is_its_domain(corpora: dict[str, Corpus]) -> None:
    for puzzle in passages.distinct(corpora, "test", 100):
        passage = puzzle.prompt.removeprefix("Text: ").removesuffix("\nKind:")
        assert passage.startswith(puzzle.answer)
        assert puzzle.answer in puzzle.choices
        assert len(set(puzzle.choices)) == 4


def test_a_passage_that_was_trained_on_is_never_asked() -> None:
    common = " ".join(f"common{number}" for number in range(40))
    held = tuple(f"{common} {' '.join(f'own{n}x{at}' for at in range(40))}" for n in range(20))
    corpora = {name: Corpus((common,), held) for name in DOMAINS}
    asked = passages.distinct(corpora, "pool", 100)
    assert not any(puzzle.key.split(" ", 1)[1] in common for puzzle in asked)
    first = next(passages.stream(corpora, "train", 0))
    assert first.key.split(" ", 1)[1] in common
