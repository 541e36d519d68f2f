"""What a server leaves out or does otherwise is refused by its name, over real HTTP."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from offline.engines.endpoint import EndpointLM
from tests.engines.served import Answers, Change, requests
from vllm_moe_prune.errors import PruneError

PAIR = ("which cat is here ? the", " blue cat runs")  # 6 tokens, then 3
Fields = dict[str, Any]


def first(reply: Fields) -> Fields:
    choice: Fields = reply["choices"][0]
    return choice


def with_logprobs(change: Callable[[Fields], Any]) -> Change:
    def changed(reply: Fields) -> Fields:
        change(first(reply)["logprobs"])
        return reply

    return changed


def with_choice(**fields: Any) -> Change:
    return lambda reply: {**reply, "choices": [{**first(reply), **fields}]}


def without(*names: str) -> Change:
    return lambda reply: {key: value for key, value in reply.items() if key not in names}


def only_the_last(count: int, read: int = 9) -> Change:
    def cut(reply: Fields) -> Fields:
        logprobs = {key: values[-count:] for key, values in first(reply)["logprobs"].items()}
        reply["choices"] = [{**first(reply), "logprobs": logprobs}]
        return {**reply, "usage": {**reply["usage"], "prompt_tokens": read}}

    return cut


def put(name: str, place: int, value: Any) -> Change:
    return with_logprobs(lambda logprobs: logprobs[name].__setitem__(place, value))


def usage(**counts: Any) -> Change:
    return lambda reply: {**reply, "usage": {**reply["usage"], **counts}}


HTML = b"<html><body>Welcome to nginx!</body></html>"

ANY = {  # of any request
    "html": (lambda _: HTML, "replied with text/html, not with JSON"),
    "a list": (lambda reply: [reply], "replied with list"),
    "an error with status 200": (
        lambda _: {"error": {"message": "out of\nmemory"}},
        "failed with status 200: out of",
    ),
    "an older error with status 200": (
        lambda _: {"object": "error", "message": "no such thing"},
        "failed with status 200: no such thing",
    ),
    "no choices": (without("choices"), "leaves out `choices`"),
    "an empty list of choices": (lambda reply: {**reply, "choices": []}, "leaves out `choices`"),
    "two choices": (
        lambda reply: {**reply, "choices": reply["choices"] * 2},
        "gave 2 choices where one was asked for",
    ),
    "another index": (with_choice(index=3), "gave choice 3 of the one that was asked for"),
    "a failure": (with_choice(finish_reason="error"), "finished a request with 'error'"),
    "an abortion": (with_choice(finish_reason="abort"), "finished a request with 'abort'"),
    "no usage": (without("usage"), "leaves out `usage`"),
    "an empty usage": (usage(prompt_tokens=None), "leaves out `usage`"),
}
OF_TOKENS = {  # of any request whose prompt is token ids
    "a cut prompt": (usage(prompt_tokens=5), "read 5 tokens where"),
    "a token more": (usage(prompt_tokens=77), "were sent: the prompt was added to or encoded anew"),
}
OF_CHOICES = {
    "no logprobs": (with_choice(logprobs=None), "leaves out `logprobs` of a prompt"),
    "generated tokens only": (only_the_last(1), "prompt of 9 tokens: those of generated tokens"),
    "a token less": (only_the_last(8), "gave 8 `logprobs.token_logprobs` for a prompt of 9 tokens"),
    "a cut prompt with its scores": (only_the_last(6, read=5), "read 5 tokens where 9 were sent"),
    "no log-probabilities": (
        with_logprobs(lambda logprobs: logprobs.pop("token_logprobs")),
        "leaves out `logprobs.token_logprobs`",
    ),
    "no tokens": (
        with_logprobs(lambda logprobs: logprobs.pop("tokens")),
        "leaves out `logprobs.tokens`",
    ),
    "no alternatives": (
        with_logprobs(lambda logprobs: logprobs.update(top_logprobs=None)),
        "leaves out `logprobs.top_logprobs`",
    ),
    "nothing for a token": (put("token_logprobs", 8, None), "gave None as `logprobs.token_logp"),
    "not a number": (put("token_logprobs", 7, float("nan")), "gave nan as `logprobs.token_logp"),
    "no chance": (
        put("token_logprobs", 7, float("-inf")),
        "gave -inf as `logprobs.token_logp",
    ),
    "a probability": (put("token_logprobs", 7, 0.25), "gave 0.25 as .* of token 7: above zero"),
    "a text": (put("token_logprobs", 7, "-3"), "gave '-3' as `logprobs.token_logprobs`"),
    "no alternatives of a token": (
        put("top_logprobs", 8, None),
        "leaves out `logprobs.top_logprobs` of token 8",
    ),
    "alternatives of another token": (
        put("top_logprobs", 8, {"a": -500.0}),
        "gave `logprobs.top_logprobs` of token 8 below the token's own",
    ),
    "alternatives that are no numbers": (
        put("top_logprobs", 8, {"a": None}),
        "gave None as `logprobs.top_logprobs` of token 8",
    ),
    "another token": (put("tokens", 7, "token_id:90"), "scored 'token_id:90' where token 7 was"),
    "another word": (put("tokens", 1, "dog"), "scored 'dog' where token 1 was 'cat'"),
    "no name of a token": (put("tokens", 3, None), "scored 'None' where token 3 was"),
}
OF_TEXTS = {
    "no text": (with_choice(text=None), "leaves out `text`"),
    "more than was asked for": (
        usage(completion_tokens=9),
        "generated 9 tokens where at most 5 were asked for",
    ),
}
OF_CHATS = {
    "no message": (with_choice(message=None), "leaves out `message`"),
    "no content": (with_choice(message={"role": "assistant"}), "leaves out `content`"),
    "parts of a content": (with_choice(message={"content": []}), "gave list .* as `content`"),
}


def cases(*tables: dict[str, tuple[Change, str]]) -> list[Any]:
    return [pytest.param(*case, id=name) for table in tables for name, case in table.items()]


def refused(ask: Callable[[], object], url: str, said: str) -> None:
    with pytest.raises(PruneError) as caught:
        ask()
    assert re.match(re.escape(url) + " .*" + said, caught.value.message), caught.value.message
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("change", "said"), cases(ANY, OF_TOKENS, OF_CHOICES))
def test_choices(url: str, answers: Answers, tiny: Path, change: Change, said: str) -> None:
    lm = EndpointLM.connect(url, tiny)
    answers.change = change
    refused(lambda: lm.loglikelihood(requests(PAIR)), url, said)


@pytest.mark.parametrize(("change", "said"), cases(ANY, OF_TOKENS, OF_TEXTS))
def test_texts(url: str, answers: Answers, tiny: Path, change: Change, said: str) -> None:
    lm = EndpointLM.connect(url, tiny)
    answers.change = change
    asked = requests((PAIR[0], {"until": ["."], "max_gen_toks": 5}))
    refused(lambda: lm.generate_until(asked), url, said)


@pytest.mark.parametrize(("change", "said"), cases(ANY, OF_CHATS))
def test_chats(url: str, answers: Answers, tiny: Path, change: Change, said: str) -> None:
    lm = EndpointLM.connect(url, tiny)
    answers.says, answers.change = [{"content": "42"}], change
    context = lm.apply_chat_template([{"role": "user", "content": "0"}])
    refused(lambda: lm.generate_until(requests((context, {"max_gen_toks": 5}))), url, said)


@pytest.mark.parametrize("names", ["decode", "convert_ids_to_tokens", "token_id", "spaced"])
def test_tokens_by_any_name_that_is_theirs(
    url: str, answers: Answers, tiny: Path, names: str
) -> None:
    lm = EndpointLM.connect(url, tiny)
    spellings: dict[str, Callable[[int], str]] = {
        "decode": lambda token: str(lm.tokenizer.decode([token])),
        "convert_ids_to_tokens": lambda token: str(lm.tokenizer.convert_ids_to_tokens(token)),
        "token_id": "token_id:{}".format,
        "spaced": lambda token: "\u0120" + str(lm.tokenizer.decode([token])),
    }
    answers.names = spellings[names]
    ((found, _),) = lm.loglikelihood(requests(PAIR))
    assert found == -sum(lm.tok_encode(PAIR[1], add_special_tokens=False))


def test_a_server_that_generates_nothing_beside_the_scores(
    url: str, answers: Answers, tiny: Path
) -> None:
    def cut(reply: Fields) -> Fields:
        logprobs = {key: values[:-1] for key, values in first(reply)["logprobs"].items()}
        reply["choices"] = [{**first(reply), "logprobs": logprobs}]
        return reply

    lm = EndpointLM.connect(url, tiny)
    expected = lm.loglikelihood(requests(PAIR))
    answers.change = cut
    assert lm.loglikelihood(requests(PAIR)) == expected


def test_the_first_reply_that_is_refused_ends_it(url: str, answers: Answers, tiny: Path) -> None:
    lm = EndpointLM.connect(url, tiny)
    answers.change = without("usage")
    refused(lambda: lm.loglikelihood(requests(*[PAIR] * 400)), url, "leaves out `usage`")
    assert len(answers.asked) < 400


def test_what_the_server_says_of_itself_is_no_json(url: str, answers: Answers, tiny: Path) -> None:
    answers.models = lambda: HTML  # type: ignore[method-assign,assignment,return-value]
    with pytest.raises(PruneError, match=r"no OpenAI-compatible server at .*not with JSON"):
        EndpointLM.connect(url, tiny)
    assert json.dumps(answers.asked) == "[]"
