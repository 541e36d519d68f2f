"""Scoring over HTTP against a server that knows the answers and notes what it was asked."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from offline.engines.encoding import Encoder
from offline.engines.endpoint import EndpointLM
from offline.engines.local.packing import group
from offline.engines.local.transformers import TransformersEngine
from offline.engines.server import Endpoint
from tests.engines.served import Answers, requests
from tests.tiny import make_tiny_mixtral
from vllm_moe_prune.errors import PruneError

PAIRS = [
    ("which cat is here ? the", " red"),
    ("which cat is here ? the", " blue cat runs"),
    ("", "the sun sings"),
    ("the king reads ", "a question"),
    ("the king reads", " w90"),
    ("the king reads", " w91"),  # of two neighbours one has an even id
]


def test_choices_are_asked_in_the_tokens_of_the_engines(
    url: str, answers: Answers, tiny: Path, engine: TransformersEngine
) -> None:
    lm = EndpointLM.connect(url, tiny)
    found = lm.loglikelihood(requests(*PAIRS))
    encoded = engine._scorer.encode_pairs(PAIRS)
    sent = sorted(body["prompt"] for body in answers.asked)
    assert sent == sorted(context + continuation for context, continuation in encoded)
    assert found == [
        (-float(sum(continuation)), all(token % 2 == 0 for token in continuation))
        for _, continuation in encoded
    ]
    assert {greedy for _, greedy in found} == {True, False}
    assert lm.tokens == sum(map(len, sent))
    assert {body["model"] for body in answers.asked} == {"first"}


def test_texts_are_asked_greedily_with_the_tokens_of_the_engines(
    url: str, answers: Answers, tiny: Path, engine: TransformersEngine
) -> None:
    lm = EndpointLM.connect(url, tiny, "second")
    options = {"until": ["\n", "sun"], "max_gen_toks": 7, "do_sample": False}
    long = "red " * 600
    found = lm.generate_until(requests(("the cat", options), (long, {"until": "."})))
    ids = [engine._scorer.encode_text("the cat"), lm.encode_text(long, room=256)]
    assert found == [f" {len(one)} words" for one in ids]
    asked = sorted(answers.asked, key=lambda body: len(body["prompt"]))
    assert [body["prompt"] for body in asked] == ids
    assert [body["stop"] for body in asked] == [["\n", "sun"], ["."]]
    assert [body["max_tokens"] for body in asked] == [7, 256]
    assert {(b["model"], b["temperature"], b["repetition_penalty"]) for b in asked} == {
        ("second", 0, 1.0)
    }
    assert len(ids[1]) + 256 == 510
    assert lm.tokens == sum(map(len, ids)) + 2 * 3


def test_what_the_model_cannot_see_whole_is_cut_as_in_the_engines(
    url: str, answers: Answers, tiny: Path
) -> None:
    lm = EndpointLM.connect(url, tiny)  # the tiny model sees 512 tokens, and so does the server
    pair = ("red " * 600, " blue cat")
    lm.loglikelihood(requests(pair))
    (question,) = group(lm.encode_pairs([pair]), 510)
    assert answers.asked[0]["prompt"] == [*question.context, *question.continuations[0]]
    assert len(answers.asked[0]["prompt"]) == 511  # and one that is generated


@pytest.mark.parametrize("kind", ["choice", "text"])
def test_a_server_that_takes_less_than_the_model_refuses_rather_than_cuts(
    kind: str, url: str, answers: Answers, tiny: Path
) -> None:
    answers.length = 20
    lm = EndpointLM.connect(url, tiny)
    fits, not_fits = "red " * 13, "red " * 30
    with pytest.raises(PruneError, match=r"and .* takes 20") as caught:
        for text in (fits, not_fits):
            if kind == "choice":
                lm.loglikelihood(requests((text.strip(), " blue")))
            else:
                lm.generate_until(requests((text.strip(), {"max_gen_toks": 3})))
            assert text == fits
    assert caught.value.hint is not None
    assert caught.value.hint.startswith("serve with --max-model-len 3")


def test_no_request_to_this_machine_goes_through_a_proxy(
    url: str, tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.delenv("no_proxy", raising=False)
    assert EndpointLM.connect(url, tiny).loglikelihood(requests(PAIRS[0]))


def test_the_key_is_sent(
    url: str, answers: Answers, tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    EndpointLM.connect(url + "/v1/", tiny).loglikelihood(requests(PAIRS[0]))
    assert answers.keys == {"Bearer secret"}


def refusal(*arguments: Any) -> PruneError:
    with pytest.raises(PruneError) as caught:
        EndpointLM.connect(*arguments).loglikelihood(requests(PAIRS[0]))
    assert "\n" not in str(caught.value)
    return caught.value


def test_what_is_wrong_is_one_line(url: str, answers: Answers, tiny: Path, tmp_path: Path) -> None:
    assert refusal("http://127.0.0.1:9", tiny).message.startswith("no OpenAI-compatible server at")
    assert refusal("nonsense", tiny).message.startswith("no OpenAI-compatible server at nonsense")
    wrong = refusal(url, tiny, "third")
    assert wrong.message == f"{url} does not serve 'third'"
    assert wrong.hint == "it serves first, second"
    shutil.copy(tiny / "config.json", tmp_path)
    assert refusal(url, tmp_path).message.startswith(f"no tokenizer in {tmp_path}")
    assert "absent" in refusal(url, tmp_path / "absent").message
    answers.status = 400
    assert refusal(url, tiny).message == f"{url} failed: status 400: too long"


def test_a_server_of_another_base_is_refused(
    url: str, answers: Answers, tiny: Path, tmp_path: Path
) -> None:
    answers.root = str(tiny)
    assert isinstance(EndpointLM.connect(url, tiny), Encoder)
    other = make_tiny_mixtral(tmp_path / "other", seed=5)
    with pytest.raises(PruneError, match="does not have the base of"):
        EndpointLM.connect(url, other)
    answers.root = "org/name"  # on the hub: nothing to compare with
    assert Endpoint.find(url).root == "org/name"
    EndpointLM.connect(url, other)
