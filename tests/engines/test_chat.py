"""Conversations over HTTP: answers as a chat, choices as completions, thinking left out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from offline.engines.endpoint import EndpointLM
from tests.engines.served import Answers, requests
from vllm_moe_prune.errors import PruneError

END = "</think>"


@pytest.fixture
def lm(url: str, tiny: Path) -> EndpointLM:
    return EndpointLM.connect(url, tiny)


def question(lm: EndpointLM, number: int) -> str:
    """Return a conversation to which the server says its message of this number."""
    turns = [{"role": "system", "content": "you sing"}, {"role": "user", "content": str(number)}]
    return lm.apply_chat_template(turns)


def test_answers_are_asked_as_a_chat(answers: Answers, lm: EndpointLM) -> None:
    answers.says = [{"role": "assistant", "content": " 42 .\n\nand more"}]
    context = question(lm, 0)
    options = {"until": ["\n\n"], "max_gen_toks": 7, "do_sample": False}
    assert lm.generate_until(requests((context, options))) == [" 42 ."]
    assert answers.paths == ["/v1/chat/completions"]
    assert answers.asked == [
        {
            "model": "first",
            "messages": [
                {"role": "system", "content": "you sing"},
                {"role": "user", "content": "0"},
            ],
            "max_tokens": 7,
            "stop": ["\n\n"],
            "temperature": 0,
            "repetition_penalty": 1.0,
        }
    ]
    assert lm.tokens == 11 + 3  # as the server counts them


def test_a_message_that_is_begun_is_continued(answers: Answers, lm: EndpointLM) -> None:
    answers.says = [{"content": "42"}]
    turns = [{"role": "user", "content": "?"}, {"role": "assistant", "content": "0"}]
    context = lm.apply_chat_template(turns, add_generation_prompt=False)
    assert str(context).endswith("<|assistant|> 0")
    assert lm.generate_until(requests((context, {}))) == ["42"]
    (asked,) = answers.asked
    assert (asked["continue_final_message"], asked["add_generation_prompt"]) == (True, False)


def test_choices_are_scored_in_the_tokenizers_own_template(
    answers: Answers, lm: EndpointLM
) -> None:
    context = question(lm, 0)
    lm.loglikelihood(requests((context, "red"), (context, "blue cat")))
    assert answers.paths == ["/v1/completions"] * 2
    sent = sorted(answers.asked, key=lambda body: len(body["prompt"]))
    turns = [{"role": "system", "content": "you sing"}, {"role": "user", "content": "0"}]
    naive = lm.tokenizer.apply_chat_template(turns, add_generation_prompt=True)["input_ids"]
    encode = lm.tokenizer.encode
    assert [body["prompt"] for body in sent] == [[*naive, *encode(t)] for t in ("red", "blue cat")]


def test_chats_and_plain_prompts_keep_their_places(answers: Answers, lm: EndpointLM) -> None:
    answers.says = [{"content": "a"}, {"content": "b"}]
    asked = requests(("the cat", {}), (question(lm, 1), {}), ("the", {}), (question(lm, 0), {}))
    assert lm.generate_until(asked) == [" 2 words", "b", " 1 words", "a"]


def ask(lm: EndpointLM, answers: Answers, *says: dict[str, Any], **options: Any) -> list[str]:
    answers.says = list(says)
    asked = requests(*((question(lm, number), options) for number in range(len(says))))
    return lm.generate_until(asked)


def test_thinking_within_the_answer_does_not_count(answers: Answers, lm: EndpointLM) -> None:
    says = [{"content": f"<think>\n\n41?{END}42"}, {"content": "<think>\n\n42"}]
    assert ask(lm, answers, *says, think_end=END, until=["\n\n"]) == ["42", ""]
    assert lm.unfinished == 1
    (one, _) = answers.asked
    assert (one["stop"], one["skip_special_tokens"]) == ([], False)  # nothing cuts the thinking


@pytest.mark.parametrize("name", ["reasoning_content", "reasoning"])
def test_thinking_beside_the_answer_does_not_count(
    name: str, answers: Answers, lm: EndpointLM
) -> None:
    says = [
        {"content": "42\n\nand", name: "41?"},
        {"content": None, name: "41? or"},  # never ended
        {"content": "43", name: None},  # did not think
        {"content": f"x{END}44", name: "y"},
    ]
    assert ask(lm, answers, *says, think_end=END, until=["\n\n"]) == ["42", "", "43", "44"]
    assert lm.unfinished == 1
    lm.unfinished = 0
    assert ask(lm, answers, *says[:3]) == ["42\n\nand", "", "43"]
    assert lm.unfinished == 1


def test_nothing_is_an_answer(answers: Answers, lm: EndpointLM) -> None:
    assert ask(lm, answers, {"content": ""}, {"content": None}) == ["", ""]
    assert lm.unfinished == 0


@pytest.mark.parametrize("chat", [True, False])
def test_samples_are_asked_for_with_a_seed_of_their_own(
    chat: bool, answers: Answers, lm: EndpointLM
) -> None:
    options = {"temperature": 0.6, "top_p": 0.95, "top_k": 20, "seed": 5}
    answers.says = [{"content": "42"}]
    lm.generate_until(requests((question(lm, 0) if chat else "the cat", options)) * 2)
    one, other = answers.asked
    assert {name: one[name] for name in ("temperature", "top_p", "top_k", "min_p")} == {
        **{name: options[name] for name in ("temperature", "top_p", "top_k")},
        "min_p": 0.0,
    }
    assert isinstance(one["seed"], int) and one["seed"] != other["seed"]


def test_a_conversation_that_does_not_fit_is_refused(
    answers: Answers, tiny: Path, url: str
) -> None:
    answers.length, answers.says = 40, [{"content": "42"}]
    lm = EndpointLM.connect(url, tiny)
    context = question(lm, 0)
    length = len(lm.tok_encode(context))
    fits = 40 - length
    assert lm.generate_until(requests((context, {"max_gen_toks": fits}))) == ["42"]
    with pytest.raises(PruneError, match="a conversation and its answer need 41 tokens") as caught:
        lm.generate_until(requests((context, {"max_gen_toks": fits + 1})))
    assert "--max-gen-tokens" in str(caught.value.hint)
