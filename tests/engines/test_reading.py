"""What models expect of texts, against a naive computation, and over HTTP."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from offline.engines.endpoint import EndpointLM
from offline.engines.local.transformers import TransformersEngine
from offline.engines.reading import Reading, divergence, same_first
from tests.engines.served import Answers
from tests.tiny import random_map
from vllm_moe_prune.errors import PruneError

RNG = np.random.default_rng(4)
TEXTS = [RNG.integers(5, 120, length).tolist() for length in (2, 30, 300, 7)]


def naive(engine: TransformersEngine, text: list[int]) -> torch.Tensor:
    """Return the log-probabilities [L, V] of what follows each token but the last."""
    return engine.logits([text[:-1]])[0].double().log_softmax(-1)


def pruned(engine: TransformersEngine) -> Any:
    return random_map(engine.folder, np.random.default_rng(6), kinds=("sliced",), keep=3)


def test_readings_equal_the_naive_computation(engine: TransformersEngine) -> None:
    base = [naive(engine, text) for text in TEXTS]
    found = engine.reader.readings(TEXTS, count=5)
    for text, expected, one in zip(TEXTS, base, found, strict=True):
        own = expected[torch.arange(len(text) - 1), torch.tensor(text[1:])]
        np.testing.assert_allclose(one.log_probs, own, atol=2e-4)
        listed, tokens = expected.topk(5)
        np.testing.assert_allclose(one.listed, listed, atol=2e-4)
        np.testing.assert_array_equal(one.tokens[:, 0], tokens[:, 0])
        np.testing.assert_allclose(one.greatest, listed[:, 0], atol=2e-4)
    engine.apply(pruned(engine))
    again = engine.reader.readings(TEXTS, wanted=[one.tokens for one in found])
    for text, before, one in zip(TEXTS, found, again, strict=True):
        now = naive(engine, text).gather(1, torch.from_numpy(before.tokens).long())
        np.testing.assert_array_equal(one.tokens, before.tokens)
        np.testing.assert_allclose(one.listed, now, atol=2e-4)


def test_with_all_tokens_listed_the_divergence_is_exact(engine: TransformersEngine) -> None:
    base = [naive(engine, text) for text in TEXTS]
    vocab = base[0].shape[1]
    before = engine.reader.readings(TEXTS, count=vocab)
    few = engine.reader.readings(TEXTS, count=20)
    assert all(divergence(one, one).max() == 0 for one in before)
    engine.apply(pruned(engine))
    after = engine.reader.readings(TEXTS, wanted=[one.tokens for one in before])
    after_few = engine.reader.readings(TEXTS, wanted=[one.tokens for one in few])
    for number, text in enumerate(TEXTS):
        p, q = base[number], naive(engine, text)
        exact = (p.exp() * (p - q)).sum(-1).numpy()
        assert exact.max() > 1e-3
        np.testing.assert_allclose(divergence(before[number], after[number]), exact, atol=1e-4)
        less = divergence(few[number], after_few[number])
        assert (less <= exact + 1e-5).all()
        same = (p.argmax(-1) == q.argmax(-1)).numpy()
        np.testing.assert_array_equal(same_first(before[number], after[number]), same)


def test_a_tie_counts_as_the_same() -> None:
    two = np.log(np.array([[0.4, 0.4]], np.float32))
    nothing = np.zeros(1)
    base = Reading(nothing, two[:, 0], np.array([[3, 4]], np.int32), two)
    assert same_first(base, Reading(nothing, two[:, 0], base.tokens, two)).all()


def test_what_a_server_leaves_open_never_makes_the_divergence_more() -> None:
    rng = np.random.default_rng(1)
    p, q = (rng.dirichlet(np.full(30, 0.3), size=50) for _ in range(2))
    exact = (p * np.log(p / q)).sum(axis=1)
    ids = np.argsort(-p, axis=1)[:, :8]
    base = Reading(np.zeros(50), np.zeros(50, np.float32), ids.astype(np.int32),
                   np.log(np.take_along_axis(p, ids, 1)).astype(np.float32))  # fmt: skip
    least = np.sort(q, axis=1)[:, -8]
    own = np.take_along_axis(q, ids, 1)
    told = np.where(own >= least[:, None], np.log(own), np.nan).astype(np.float32)
    assert np.isnan(told).any()
    other = Reading(np.zeros(50), np.zeros(50, np.float32), base.tokens, told, np.log(least))
    found = divergence(base, other)
    assert (found <= exact + 1e-5).all()
    assert found.sum() > 0.1 * exact.sum()


def tops(reply: dict[str, Any]) -> dict[str, Any]:
    """Let a reply tell three tokens at each place: the right one, and two that are less likely."""
    found = reply["choices"][0]["logprobs"]
    found["top_logprobs"] = [
        None if own is None else {"token_id:7": own - 2, name: own, "token_id:3": own - 1}
        for name, own in zip(found["tokens"], found["token_logprobs"], strict=True)
    ]
    return reply


def test_a_server_is_asked_for_the_likeliest_and_may_not_tell_all(
    url: str, answers: Answers, tiny: Path
) -> None:
    answers.change = tops
    lm = EndpointLM.connect(url, tiny)
    texts = [[5, 10, 20], [5, 30]]
    found = lm.readings(texts, 3)
    assert [one.tokens.tolist() for one in found] == [[[10, 3, 7], [20, 3, 7]], [[30, 3, 7]]]
    assert found[0].log_probs.tolist() == [-10, -20]
    assert found[0].listed[0].tolist() == [-10, -11, -12]
    assert {body["logprobs"] for body in answers.asked} == {3}
    wanted = [np.array([[10, 99], [3, 20]], np.int32), np.array([[7, 30]], np.int32)]
    told = lm.readings(texts, 3, wanted)
    assert told[0].listed[1].tolist() == [-21, -20]
    assert np.isnan(told[0].listed[0, 1])
    assert told[0].least is not None and told[0].least.tolist() == [-12, -22]
    assert same_first(found[0], told[0]).tolist() == [True, False]
    assert lm.readings(texts)[1].listed.shape == (1, 0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda top: {"token_id:10": -10}, "told 1 of 3"),
        (lambda top: None, "told 0 of 3"),
        (lambda top: dict.fromkeys("abc", -1.0), "by their text"),
    ],
)
def test_a_server_that_tells_too_little_is_refused(
    change: Any, message: str, url: str, answers: Answers, tiny: Path
) -> None:
    def changed(reply: dict[str, Any]) -> dict[str, Any]:
        found = tops(reply)["choices"][0]["logprobs"]
        found["top_logprobs"][1] = change(found["top_logprobs"][1])
        return reply

    answers.change = changed
    with pytest.raises(PruneError, match=message):
        EndpointLM.connect(url, tiny).readings([[5, 10, 20]], 3)
