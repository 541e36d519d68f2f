"""Messages in OpenAI's spelling, of what data sets write."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from offline.texts.row import Skip
from vllm_moe_prune.errors import PruneError
from vllm_moe_prune.reading import parse_json

Messages = list[dict[str, Any]]

NO_MESSAGES = "no messages with roles"
_ROLES = {
    **dict.fromkeys(("human", "user"), "user"),
    **dict.fromkeys(("gpt", "chatgpt", "bing", "bard", "model", "assistant"), "assistant"),
    **dict.fromkeys(("tool", "function", "function_response", "observation"), "tool"),
    "system": "system",
}
_THINKING = ("reasoning_content", "thinking")  # templates ask for one or the other


def parsed(value: Any) -> Any:
    """Return what a column holds that may be JSON written as text.

    :raises Skip: if it is text and no JSON
    """
    if not isinstance(value, str):
        return value
    try:
        return parse_json(value, "a column")
    except PruneError:
        raise Skip(NO_MESSAGES) from None


def messages_of(value: Any) -> Messages:
    """Return messages, each with a role and content, tool calls or thoughts.

    :raises Skip: if they are none, or say nothing
    """
    if not isinstance(value, list) or not all(isinstance(one, Mapping) for one in value):
        raise Skip(NO_MESSAGES)
    return _said([_message(dict(one)) for one in value])


def conversation(value: Any) -> Messages:
    """Return ShareGPT's ``{"from", "value"}`` as messages; those of OpenAI as they are.

    :raises Skip: if they are none, or say nothing
    """
    entries = value if isinstance(value, list) else [None]
    if any(isinstance(one, Mapping) and "role" in one for one in entries):
        return messages_of(value)
    found: Messages = []
    for one in entries:
        if not isinstance(one, Mapping) or not isinstance(one.get("from"), str):
            raise Skip(NO_MESSAGES)
        found.append({"role": _ROLES.get(one["from"], one["from"]), "content": one.get("value")})
    return messages_of(found)


def turns(asked: str, answered: str) -> Messages:
    """Return a question and its answer."""
    return [{"role": "user", "content": asked}, {"role": "assistant", "content": answered}]


def called(query: str, calls: Any) -> Messages:
    """Return a question that is answered by calls of tools, ``{"name", "arguments"}`` each.

    :raises Skip: if they are none
    """
    entries = calls if isinstance(calls, list) else [None]
    if not entries or not all(isinstance(c, Mapping) and "name" in c for c in entries):
        raise Skip(NO_MESSAGES)
    made = [
        {
            "id": f"call_{number}",
            "type": "function",
            "function": {"name": one["name"], "arguments": one.get("arguments", {})},
        }
        for number, one in enumerate(entries)
    ]
    answer = {"role": "assistant", "content": "", "tool_calls": made}
    return [{"role": "user", "content": query}, answer]


def tools_of(value: Any) -> list[Any] | None:
    """Return tools in OpenAI's spelling; None where there are none.

    :raises Skip: if they are no list
    """
    found = parsed(value) if value else None
    if not found:
        return None
    if not isinstance(found, list) or not all(isinstance(one, Mapping) for one in found):
        raise Skip("tools that are no list")
    return [one if "function" in one else {"type": "function", "function": one} for one in found]


def with_parsed_arguments(messages: Messages) -> Messages:
    """Return messages whose calls have their arguments as objects, as some templates want them.

    :raises Skip: if arguments are no JSON
    """
    return [
        {**message, "tool_calls": [_parsed_call(call) for call in message["tool_calls"]]}
        if isinstance(message.get("tool_calls"), list)
        else message
        for message in messages
    ]


def _parsed_call(call: Any) -> Any:
    function = call.get("function") if isinstance(call, Mapping) else None
    if not isinstance(function, Mapping):
        return call
    return {**call, "function": {**function, "arguments": parsed(function.get("arguments"))}}


def _said(messages: Messages) -> Messages:
    """Pass over messages that say nothing at all."""
    for message in messages:
        text = message.get("content")
        if (isinstance(text, str) and text.strip()) or message.get("tool_calls"):
            return messages
    raise Skip("empty")


def _message(message: dict[str, Any]) -> dict[str, Any]:
    if not isinstance(message.get("role"), str):
        raise Skip(NO_MESSAGES)
    content = message.get("content")
    if isinstance(content, list):
        message["content"] = _joined(content)
    elif not (content is None or isinstance(content, str)):
        raise Skip(NO_MESSAGES)
    for given, other in (_THINKING, _THINKING[::-1]):
        if isinstance(message.get(given), str):
            message.setdefault(other, message[given])
    return message


def _joined(parts: list[Any]) -> str:
    """Return the text of content that is given in parts."""
    given = (part.get("text") if isinstance(part, Mapping) else part for part in parts)
    texts = [text for text in given if isinstance(text, str)]
    if len(texts) < len(parts):
        raise Skip("content that is no text")
    return "".join(texts)
