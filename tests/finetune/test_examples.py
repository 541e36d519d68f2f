"""Which tokens are trained on, and which of them have a loss."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer

from offline.calibration.corpus import Domain
from offline.engines.encoding import Encoder
from offline.finetune.examples import NO_LOSS, Examples, packed, supervised
from tests.finetune.samples import IDENTITY, ragged, text, tiny
from vllm_moe_prune.errors import PruneError
from vllm_moe_prune.provenance import DataIdentity

LENGTH = 8


def domain(name: str, sequences: int, first: int) -> Domain:
    ids = np.arange(first, first + sequences * LENGTH, dtype=np.int64).reshape(-1, LENGTH)
    return Domain(name, ids, DataIdentity(name=name, split="train", count=sequences, sha256=""))


DOMAINS = (domain("a", 5, 0), domain("b", 3, 1000))


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return AutoTokenizer.from_pretrained(tiny(tmp_path_factory.mktemp("tiny") / "m"))


@given(st.integers(1, 8 * LENGTH), st.integers(0, 3))
def test_text_is_whole_sequences_and_all_have_a_loss(tokens: int, seed: int) -> None:
    found = packed(DOMAINS, tokens=tokens, seed=seed)
    assert len(found.input_ids) == -(-tokens // LENGTH)
    assert (found.labels == found.input_ids).all()
    assert found.num_tokens == len(found.input_ids) * (LENGTH - 1)  # nothing predicts the first
    rows = {tuple(row) for domain in DOMAINS for row in domain.token_ids}
    assert {tuple(row) for row in found.input_ids} <= rows
    assert len({tuple(row) for row in found.input_ids}) == len(found.input_ids)


def test_skipping_gives_what_comes_behind() -> None:
    whole = packed(DOMAINS, tokens=8 * LENGTH, seed=1).input_ids
    rest = packed(DOMAINS, tokens=5 * LENGTH, seed=1, skip=3).input_ids
    assert (rest == whole[3:]).all()
    assert (whole != packed(DOMAINS, tokens=8 * LENGTH, seed=2).input_ids).any()


def test_too_little_text_is_repeated_and_said(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        assert len(packed(DOMAINS, tokens=8 * LENGTH, seed=0).input_ids) == 8
        assert caplog.messages == []
        found = packed(DOMAINS, tokens=12 * LENGTH, seed=0)
    assert len(found.input_ids) == 12
    assert "some are repeated" in caplog.text
    assert len({tuple(row) for row in found.input_ids}) == 8


def test_identity_is_of_what_was_taken() -> None:
    one = packed(DOMAINS, tokens=8 * LENGTH, seed=0)
    assert {(e.name, e.split, e.count) for e in one.identity} == {
        ("a", "train", 5),
        ("b", "train", 3),
    }
    other = packed(DOMAINS, tokens=6 * LENGTH, seed=0)
    assert sum(e.count for e in other.identity) == 6
    assert {e.sha256 for e in one.identity} != {e.sha256 for e in other.identity}


def test_the_loss_is_on_answers_and_end_of_text(tokenizer: Any) -> None:
    pairs = [("the cat sees", " a dog"), ("the sun", " runs and sings")]
    found = supervised(pairs, tokenizer, length=32, identity=IDENTITY, seed=0)
    assert found.input_ids.shape[1] == 6  # as wide as the longest
    for ids, labels in zip(found.input_ids, found.labels, strict=True):
        learned = tokenizer.decode(labels[labels != NO_LOSS])
        whole = tokenizer.decode(ids, skip_special_tokens=True)
        assert learned in ("a dog </s>", "runs and sings </s>")
        assert whole in ("the cat sees a dog", "the sun runs and sings")
        assert (labels[labels != NO_LOSS] == ids[labels != NO_LOSS]).all()
    assert found.num_tokens == 3 + 4
    assert found.identity == IDENTITY


class _Encoder(Encoder):
    def loglikelihood(self, requests: Any) -> Any: ...
    def generate_until(self, requests: Any) -> Any: ...
    def _loglikelihood_tokens(self, requests: Any, **_: Any) -> Any: ...


@pytest.mark.parametrize(
    ("prompt", "answer"),
    [("the cat", " sees"), ("the cat ", "sees"), ("the cat: ", " a b ?"), ("", "the sun")],
)
def test_pairs_become_the_tokens_that_evaluation_scores(
    tokenizer: Any, prompt: str, answer: str
) -> None:
    ((context, continuation),) = _Encoder(tokenizer, 99).encode_pairs([(prompt, answer)])
    found = supervised([(prompt, answer)], tokenizer, length=99, identity=(), seed=0)
    end = tokenizer.eos_token_id
    assert found.input_ids[0].tolist() == [*context, *continuation, end]
    assert found.labels[0].tolist() == [NO_LOSS] * len(context) + [*continuation, end]


def test_a_long_pair_loses_the_front_of_its_prompt(tokenizer: Any) -> None:
    def decoded(prompt: str, answer: str) -> tuple[str, str]:
        found = supervised([(prompt, answer)], tokenizer, length=5, identity=(), seed=0)
        labels = found.labels[0]
        return tokenizer.decode(found.input_ids[0]), tokenizer.decode(labels[labels != NO_LOSS])

    assert decoded("one two three four", " red blue") == (
        "three four red blue </s>",
        "red blue </s>",
    )
    assert decoded("one two", " red green blue old new small big") == (
        "two red green blue old",  # one token before, or nothing would predict the first
        "red green blue old",
    )


def test_no_pairs_and_empty_answers_are_refused(tokenizer: Any) -> None:
    with pytest.raises(PruneError, match="no pair"):
        supervised([], tokenizer, length=5, identity=(), seed=0)
    with pytest.raises(PruneError, match="the answer to 'the cat' is empty"):
        supervised([("the cat", " ")], tokenizer, length=5, identity=(), seed=0)


@pytest.mark.parametrize("examples", [text(), ragged()])
def test_a_file_keeps_everything(examples: Examples, tmp_path: Path) -> None:
    file = tmp_path / "examples.safetensors"
    examples.save(file)
    found = Examples.load(file)
    assert (found.input_ids == examples.input_ids).all()
    assert (found.labels == examples.labels).all()
    assert (found.identity, found.digest()) == (examples.identity, examples.digest())
    assert found.digest() != text(seed=9).digest()


def test_another_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x").write_text("no")
    for name in ("x", "absent"):
        with pytest.raises(PruneError, match="holds no examples"):
            Examples.load(tmp_path / name)
