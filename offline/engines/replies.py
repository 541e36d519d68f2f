"""What a completions server replies, taken apart and checked: what it leaves out is not guessed."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from offline.engines.reading import Ids, Reading

_FAILED = {"error", "abort", "cancelled", "content_filter"}  # ways to finish without an answer
_ROUNDING = 1e-3  # in nats
_ECHO = "choices need a server with `echo` and `logprobs`, as vLLM is"


class ReplyError(ValueError):
    """A reply that cannot be used; the message follows the server's address."""

    def __init__(self, message: str, hint: str | None = None) -> None:
        super().__init__(message)
        self.hint = hint


def choice_of(reply: Any) -> Mapping[str, Any]:
    """Return the one choice of a reply to one prompt.

    :raises ReplyError: if there is none, are several or one that failed, with the server's words
    """
    if not isinstance(reply, dict):
        raise ReplyError(f"replied with {_kind(reply)} where an object belongs")
    if reply.get("error") or reply.get("object") == "error":
        raise ReplyError(f"failed with status 200: {error_of(reply)}")
    choices = reply.get("choices")
    if not isinstance(choices, list) or not choices:
        raise ReplyError("leaves out `choices`")
    choice = choices[0]
    if len(choices) > 1 or not isinstance(choice, dict):
        raise ReplyError(f"gave {len(choices)} choices where one was asked for")
    if choice.get("index", 0) != 0:
        raise ReplyError(f"gave choice {choice['index']!r} of the one that was asked for")
    if str(choice.get("finish_reason")) in _FAILED:
        raise ReplyError(f"finished a request with {choice['finish_reason']!r}")
    return choice


def error_of(reply: Any) -> str:
    """Return a server's words about an error, in one line."""
    said = reply
    for key in ("error", "message"):
        said = said.get(key, said) if isinstance(said, dict) else said
    return " ".join(str(said).partition("\n")[0].split())[:200]


def prompt_score(
    reply: Any, prompt: Sequence[int], begin: int, tokenizer: Any
) -> tuple[float, bool]:
    """Return (log-likelihood in nats, whether greedy) of the tokens from ``begin`` on.

    :param reply: to ``prompt`` with `echo`, `logprobs` and one generated token
    :raises ReplyError: if that cannot be told from it for sure: naming what is missing or differs
    """
    own, top = _scored(reply, prompt, tokenizer)
    scores = [_number(own[place], place, "token_logprobs") for place in range(begin, len(prompt))]
    greedy = [_is_top(score, top[place], place) for place, score in enumerate(scores, begin)]
    return sum(scores), all(greedy)


def prompt_reading(
    reply: Any, prompt: Sequence[int], count: int, wanted: Ids | None, tokenizer: Any
) -> Reading:
    """Return what a server's model expected of a prompt's tokens, all but the first.

    :param reply: to ``prompt`` with `echo`, `logprobs` of ``count`` and one generated token
    :param wanted: [L, K] tokens to list; the ``count`` likeliest if None
    :raises ReplyError: as `prompt_score`, or if fewer than ``count`` are told, or not by their ids
    """
    own, top = _scored(reply, prompt, tokenizer)
    places = range(1, len(prompt))
    scores = [_number(own[place], place, "token_logprobs") for place in places]
    if not count:
        nothing = np.zeros((len(places), 0), dtype=np.float32)
        return Reading(
            np.array(scores), np.array(scores, np.float32), nothing.astype(np.int32), nothing
        )
    told = [_told(top[place], place, count) for place in places]
    likeliest = [sorted(entry, key=entry.__getitem__, reverse=True)[:count] for entry in told]
    tokens = np.array(likeliest, dtype=np.int32) if wanted is None else wanted
    listed = [
        [entry.get(int(token), np.nan) for token in row]
        for entry, row in zip(told, tokens, strict=True)
    ]
    ends = [(entry[row[0]], entry[row[-1]]) for entry, row in zip(told, likeliest, strict=True)]
    greatest, least = np.array(ends, dtype=np.float32).T
    return Reading(np.array(scores), greatest, tokens, np.array(listed, np.float32), least)


def _told(top: Any, place: int, count: int) -> dict[int, float]:
    """Return token -> log-probability of those that a server tells at a place."""
    if not isinstance(top, dict) or len(top) < count:
        told = len(top) if isinstance(top, dict) else 0
        raise ReplyError(
            f"told {told} of {count} `logprobs.top_logprobs` of token {place}",
            f"agreement needs a server that tells {count}, as vLLM with --max-logprobs {count}",
        )
    found = {}
    for name, value in top.items():
        kind, _, number = str(name).partition(":")
        if kind != "token_id" or not number.isdigit():
            raise ReplyError(
                f"names the tokens of `logprobs.top_logprobs` by their text ({str(name)[:20]!r})",
                "agreement needs a server that takes `return_tokens_as_token_ids`, as vLLM is",
            )
        found[int(number)] = _number(value, place, "top_logprobs")
    return found


def _scored(reply: Any, prompt: Sequence[int], tokenizer: Any) -> tuple[Any, Any]:
    """Return the log-probabilities of a prompt's tokens and of the likeliest in their places, one
    entry for each token, once it is certain that they are those of these tokens."""
    choice = choice_of(reply)
    _check_usage(reply, prompt)
    found = choice.get("logprobs")
    if not isinstance(found, dict):
        raise ReplyError("leaves out `logprobs` of a prompt", _ECHO)
    own, top, tokens = (
        _entries(found, name, len(prompt), reply["usage"])
        for name in ("token_logprobs", "top_logprobs", "tokens")
    )
    for place, (said, token) in enumerate(zip(tokens, prompt, strict=False)):
        if not _same(said, token, tokenizer):
            raise ReplyError(
                f"scored {str(said)[:40]!r} where token {place} was "
                f"{tokenizer.decode([token])!r}: other tokens than it was sent"
            )
    return own, top


def _entries(found: Mapping[str, Any], name: str, needed: int, usage: Mapping[str, Any]) -> Any:
    """Return a list of ``found`` that has an entry for each token of the prompt."""
    entries = found.get(name)
    if not isinstance(entries, list):
        raise ReplyError(f"leaves out `logprobs.{name}`", _ECHO)
    if len(entries) < needed:
        what = f"gave {len(entries)} `logprobs.{name}` for a prompt of {needed} tokens"
        generated = len(entries) <= usage["completion_tokens"]
        raise ReplyError(f"{what}: those of generated tokens only" if generated else what, _ECHO)
    return entries


def _number(value: Any, place: int, name: str) -> float:
    """Return a log-probability."""
    if not isinstance(value, int | float) or isinstance(value, bool) or not math.isfinite(value):
        raise ReplyError(f"gave {value!r} as `logprobs.{name}` of token {place}", _ECHO)
    if value > _ROUNDING:
        raise ReplyError(f"gave {value!r} as `logprobs.{name}` of token {place}: above zero")
    return float(value)


def _is_top(score: float, top: Any, place: int) -> bool:
    if not isinstance(top, dict) or not top:
        raise ReplyError(f"leaves out `logprobs.top_logprobs` of token {place}", _ECHO)
    best = max(_number(value, place, "top_logprobs") for value in top.values())
    if best < score - _ROUNDING:
        raise ReplyError(f"gave `logprobs.top_logprobs` of token {place} below the token's own")
    return score >= best


def _same(said: Any, token: int, tokenizer: Any) -> bool:
    """Whether a server's name of a token may be that of ``token``.

    White space, special tokens and parts of characters have many spellings; letters have one.
    """
    if not isinstance(said, str):
        return False
    if said.startswith("token_id:"):
        return said == f"token_id:{token}"
    own, other = _letters(tokenizer.decode([token])), _letters(said)
    return not own or not other or own == other


def _letters(text: str) -> str:
    return re.sub("[^0-9A-Za-z]", "", text)


def completion(reply: Any, prompt: Sequence[int], max_tokens: int) -> tuple[str, int]:
    """Return the text that continues ``prompt`` and how many tokens it took.

    :raises ReplyError: if there is none, or it continues something else
    """
    text = choice_of(reply).get("text")
    if not isinstance(text, str):
        raise ReplyError("leaves out `text` of a completion")
    return text, _check_usage(reply, prompt, max_tokens)


@dataclass(frozen=True, slots=True)
class Message:
    """What a chat's reply says, what was thought apart from it, and the tokens of both."""

    content: str
    thought: str
    tokens: int


def message(reply: Any, max_tokens: int) -> Message:
    """Return the message of a chat's reply.

    :raises ReplyError: if there is none, or it says neither something nor nothing
    """
    found = choice_of(reply).get("message")
    if not isinstance(found, dict):
        raise ReplyError("leaves out `message` of a chat")
    content = found.get("content")
    thought = found.get("reasoning_content") or found.get("reasoning")
    for name, value in (("content", content), ("reasoning_content", thought)):
        if value is not None and not isinstance(value, str):
            raise ReplyError(f"gave {_kind(value)} as `{name}` of a message")
    if "content" not in found and thought is None:
        raise ReplyError("leaves out `content` of a message")
    generated = _check_usage(reply, None, max_tokens)
    return Message(content or "", thought or "", reply["usage"]["prompt_tokens"] + generated)


def _check_usage(reply: Any, prompt: Sequence[int] | None, max_tokens: int | None = None) -> int:
    """Return the tokens generated; refuse a prompt that was cut, added to or encoded anew.

    :param prompt: None is one that the server encoded
    :param max_tokens: None does not ask
    """
    usage = reply.get("usage")
    read, generated = (
        usage.get(name) if isinstance(usage, dict) else None
        for name in ("prompt_tokens", "completion_tokens")
    )
    if not isinstance(read, int) or not isinstance(generated, int):
        raise ReplyError("leaves out `usage`, which tells how many tokens were read")
    if prompt is not None and read != len(prompt):
        how = "cut" if read < len(prompt) else "added to or encoded anew"
        raise ReplyError(f"read {read} tokens where {len(prompt)} were sent: the prompt was {how}")
    if max_tokens is not None and generated > max_tokens:
        raise ReplyError(f"generated {generated} tokens where at most {max_tokens} were asked for")
    return generated


def _kind(value: Any) -> str:
    return f"{type(value).__name__} {str(value)[:40]!r}"
