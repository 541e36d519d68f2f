"""What a row says: plain text, a prompt with its answer, or a chat; read off its columns."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from offline.texts.messages import called, conversation, messages_of, parsed, tools_of, turns
from offline.texts.row import LongText, Row, Skip, is_blank, listed
from vllm_moe_prune.errors import PruneError


@dataclass(frozen=True, slots=True)
class Plain:
    """Text that is taken as it is."""

    text: str | LongText


@dataclass(frozen=True, slots=True)
class Pair:
    """A prompt and what follows it, both as they are."""

    prompt: str
    answer: str


@dataclass(frozen=True, slots=True)
class Chat:
    """Messages with roles, in OpenAI's spelling, and the tools that they may call."""

    messages: list[dict[str, Any]]
    tools: list[Any] | None = None

    def as_text(self) -> str:
        """Return what is said, without roles, a blank line between two messages."""
        said = (message.get("content") for message in self.messages)
        return "\n\n".join(text for text in said if isinstance(text, str) and text.strip())


Form = Plain | Pair | Chat


def as_text(form: Form) -> str:
    """Return what a row says as plain text."""
    if isinstance(form, Chat):
        return form.as_text()
    return form.prompt + form.answer if isinstance(form, Pair) else str(form.text)


def form_of(row: Row, column: str | None = None) -> Form:
    """Return what a row says.

    :param column: the one to read; by the names that forms have, if None
    :raises Skip: if it says nothing that can be used
    :raises PruneError: naming the row, if it has none of the forms
    """
    content = row.content
    if isinstance(content, Skip):
        raise content
    if isinstance(content, str | LongText):
        if column is not None:
            raise PruneError(f"{row.place} is plain text and has no column {column!r}")
        return _plain(content)
    if not isinstance(content, Mapping):
        raise PruneError(f"{row.place} is no object with text, but {_kind(content)}", hint=FORMS)
    if column is not None:
        return _of_column(row, content, column)
    null = False
    for names, make in _FORMS:
        if all(content.get(name) is not None for name in names):
            return make(row, content)
        null = null or all(name in content for name in names)
    if null:
        raise Skip("empty")
    has = listed(content)
    raise PruneError(f"{row.place} has no text: its columns are {has}", hint=f"{FORMS}; {COLUMN}")


COLUMN = "SOURCE#COLUMN names the column"
FORMS = (
    "a row has text, messages, conversations, prompt and completion (or response), or instruction "
    "and output (or response)"
)


def check_columns(columns: frozenset[str], place: str, column: str | None) -> None:
    """Refuse a source whose rows all lack what is read of them.

    :raises PruneError: naming the columns that there are
    """
    known = any(columns.issuperset(names) for names, _ in _FORMS)
    if column is None and not known:
        wrong = "has no text"
    elif column is not None and column not in columns:
        wrong = f"has no column {column}"
    else:
        return
    has = listed(sorted(columns))
    raise PruneError(f"{place} {wrong}: its columns are {has}", hint=f"{FORMS}; {COLUMN}")


def _of_column(row: Row, content: Mapping[str, Any], column: str) -> Form:
    check_columns(frozenset(map(str, content)), row.place, column)
    value = content[column]
    if isinstance(value, list):
        return Chat(messages_of(value), tools_of(content.get("tools")))
    return _plain(_text(row, content, column))


def _text_row(row: Row, content: Mapping[str, Any]) -> Form:
    return _plain(_text(row, content, "text"))


def _messages_row(row: Row, content: Mapping[str, Any]) -> Form:
    return Chat(messages_of(parsed(content["messages"])), tools_of(content.get("tools")))


def _conversation_row(row: Row, content: Mapping[str, Any]) -> Form:
    return Chat(conversation(parsed(content["conversations"])), tools_of(content.get("tools")))


def _pair(prompt: str, answer: str) -> Callable[[Row, Mapping[str, Any]], Form]:
    def make(row: Row, content: Mapping[str, Any]) -> Form:
        if isinstance(content[prompt], list) and isinstance(content[answer], list):
            said = [*content[prompt], *content[answer]]
            return Chat(messages_of(said), tools_of(content.get("tools")))
        pair = Pair(_text(row, content, prompt), _text(row, content, answer))
        _check(pair.answer)
        _check(pair.prompt + pair.answer)
        return pair

    return make


def _instruction(instruction: str, answer: str) -> Callable[[Row, Mapping[str, Any]], Form]:
    def make(row: Row, content: Mapping[str, Any]) -> Form:
        names = [instruction, *(n for n in ("input", "context") if content.get(n) is not None)]
        asked = [text for name in names if (text := _text(row, content, name)).strip()]
        answered = _text(row, content, answer)
        for text in ("".join(asked), answered):
            _check(text)
        return Chat(turns("\n\n".join(asked), answered))

    return make


def _call(row: Row, content: Mapping[str, Any]) -> Form:
    query = _text(row, content, "query")
    _check(query)
    return Chat(called(query, parsed(content["answers"])), tools_of(content["tools"]))


# The columns of a form; the first form that a row has is taken.
_FORMS: tuple[tuple[tuple[str, ...], Callable[[Row, Mapping[str, Any]], Form]], ...] = (
    (("text",), _text_row),
    (("messages",), _messages_row),
    (("conversations",), _conversation_row),
    (("prompt", "completion"), _pair("prompt", "completion")),
    (("prompt", "response"), _pair("prompt", "response")),
    (("instruction", "output"), _instruction("instruction", "output")),
    (("instruction", "response"), _instruction("instruction", "response")),
    (("query", "answers", "tools"), _call),
)


def _text(row: Row, content: Mapping[str, Any], name: str) -> str:
    value = content[name]
    if value is None:
        raise Skip("empty")
    if not isinstance(value, str):
        raise PruneError(f"{row.place}: `{name}` is no text, but {_kind(value)}", hint=FORMS)
    return value


def _plain(text: str | LongText) -> Plain:
    _check(text)
    return Plain(text)


def _check(text: str | LongText) -> None:
    """Pass over what is blank, and half characters, which no tokenizer takes."""
    if is_blank(text):
        raise Skip("empty")
    if isinstance(text, str):
        check_characters(text)


def check_characters(text: str) -> None:
    """Pass over text that is none in Unicode.

    :raises Skip: if there is half of a surrogate pair in it
    """
    try:
        text.encode()
    except UnicodeEncodeError:
        raise Skip("lone surrogates") from None


def _kind(value: Any) -> str:
    """Name the kind of a JSON value."""
    if value is None:
        return "null"
    for kinds, name in ((bool, "true or false"), (int | float, "a number"), (str, "a string")):
        if isinstance(value, kinds):
            return name
    if isinstance(value, list):
        return "a list"
    return "an object" if isinstance(value, Mapping) else type(value).__name__
