"""Text is dealt out once: to score on, to measure on, to tune on."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from offline.calibration.corpus import load_domains, parse_calibration
from offline.lottery.text import LotteryText, _by_document, _by_sequence, load_text
from tests.lottery.conftest import Ground
from vllm_moe_prune.errors import PruneError


@pytest.fixture(scope="module")
def tokenizer(ground: Ground) -> Any:
    return AutoTokenizer.from_pretrained(ground.model)


def dealt(ground: Ground, tokenizer: Any, **more: Any) -> LotteryText:
    given: dict[str, Any] = {"length": 32, "held_out": 4, "tune_tokens": 640, "seed": 3}
    return load_text(parse_calibration(ground.spec), tokenizer, **given | more)


def test_the_text_to_score_on_is_calibrations(ground: Ground, tokenizer: Any) -> None:
    text = dealt(ground, tokenizer)
    same = load_domains(parse_calibration(ground.spec), tokenizer, length=32, seed=3)
    assert [d.identity for d in text.score] == [d.identity for d in same]
    assert [d.identity.split for d in text.held_out] == ["held-out", "held-out"]
    assert [len(d.token_ids) for d in text.tune] == [10, 10]


def test_nothing_is_read_to_tune_on_where_nothing_is_tuned(ground: Ground, tokenizer: Any) -> None:
    assert dealt(ground, tokenizer, tune_tokens=0).tune == ()


def test_too_little_text_is_refused(ground: Ground, tokenizer: Any) -> None:
    with pytest.raises(PruneError, match=r"domain prose has too little text: .* 4000 to measure"):
        dealt(ground, tokenizer, held_out=4000)


Documents = st.lists(st.lists(st.integers(0, 9), min_size=1, max_size=30), min_size=1, max_size=20)


@settings(max_examples=60)
@given(Documents, st.lists(st.integers(0, 4), min_size=3, max_size=3), st.integers(2, 8))
def test_no_token_is_dealt_twice(documents: list[list[int]], needs: list[int], length: int) -> None:
    numbered, count = [], 0
    for document in documents:  # every token a number of its own
        numbered.append(list(range(count, count + len(document))))
        count += len(document)
    owner = {token: n for n, document in enumerate(numbered) for token in document}
    for deal in (_by_document, _by_sequence):
        found = deal(numbered, needs, length)
        tokens = [int(t) for one in found for t in one.flatten()]
        assert len(tokens) == len(set(tokens))
        assert all(
            one.shape[1] == length and len(one) <= need
            for one, need in zip(found, needs, strict=True)
        )
        if deal is _by_document:
            owners = [{owner[int(t)] for t in one.flatten()} for one in found]
            assert all(a.isdisjoint(b) for i, a in enumerate(owners) for b in owners[i + 1 :])


def test_a_domain_with_a_split_of_its_own_is_measured_on_that(
    monkeypatch: pytest.MonkeyPatch, ground: Ground, tokenizer: Any
) -> None:
    from offline.data import domains
    from offline.lottery import text as module

    words = "the cat sees a dog . " * 12
    corpus = type(
        "Corpus", (), {"train": [words] * 60, "heldout": ["a king runs home . " * 12] * 9}
    )
    monkeypatch.setattr(domains, "load_corpora", lambda names: {names[0]: corpus})
    assert module._held_out(parse_calibration("code:2")[0]) == corpus.heldout
    found = load_text(
        parse_calibration("code:2"), tokenizer, length=32, held_out=2, tune_tokens=64, seed=0
    )
    king = tokenizer.convert_tokens_to_ids("king")
    assert (found.held_out[0].token_ids == king).any()
    assert not (found.score[0].token_ids == king).any()
    assert not (found.tune[0].token_ids == king).any()
