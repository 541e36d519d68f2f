"""Chats as token ids and as text, through the model's own chat template."""

from __future__ import annotations

from typing import Any, Literal

from offline.texts.encode import encoded
from offline.texts.forms import Chat, check_characters
from offline.texts.messages import Messages, with_parsed_arguments
from offline.texts.row import Skip, told
from vllm_moe_prune.errors import PruneError

ChatTemplate = Literal["auto", "never"]
CHAT_TEMPLATE_HELP = (
    "auto: rows with roles go through the model's chat template; never: what they say is taken as "
    "plain text  [default: auto]"
)


class Refused(Skip):
    """A chat that the model's template does not take; ``reason`` says why not."""

    def __init__(self, reason: str) -> None:
        super().__init__("refused by the chat template")
        self.reason = reason


def chat_ids(chat: Chat, tokenizer: Any, template: ChatTemplate, place: str) -> list[int]:
    """Return the token ids of a chat.

    :param place: to name where the tokenizer has no template
    :raises Skip: if the template refuses it, or there are half characters in it
    :raises PruneError: if there is no template
    """
    if template == "never":
        text = chat.as_text()
        check_characters(text)
        return encoded(text, tokenizer)
    check_characters(rendered(chat.messages, tokenizer, place, tools=chat.tools))
    ids: list[int] = applied(
        chat.messages, tokenizer, place, tools=chat.tools, tokenize=True, return_dict=False
    )
    return ids


def rendered(messages: Messages, tokenizer: Any, place: str, **options: Any) -> str:
    """Return a chat as the template writes it; raises as `chat_ids`."""
    return str(applied(messages, tokenizer, place, tokenize=False, **options))


def applied(messages: Messages, tokenizer: Any, place: str, **options: Any) -> Any:
    """Apply the template, once more with calls' arguments as objects where it wants them so."""
    if not getattr(tokenizer, "chat_template", None):
        raise PruneError(
            f"{place} has roles, and the model's tokenizer has no chat template",
            hint="--chat-template never takes what is said as plain text",
        )
    try:
        return tokenizer.apply_chat_template(messages, **options)
    except Exception as error:  # a template is the model's code and raises what it likes
        reason = told(error)
    other = with_parsed_arguments(messages)
    if other != messages:
        try:
            return tokenizer.apply_chat_template(other, **options)
        except Exception:  # the first one's reason says more
            pass
    raise Refused(reason)
