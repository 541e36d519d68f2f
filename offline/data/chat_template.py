"""Conversations as a tokenizer's chat template writes them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jinja2

from vllm_moe_prune.errors import PruneError
from vllm_moe_prune.reading import read_object, read_text

_FILE = "chat_template.jinja"
_HINT = f"leave out --apply-chat-template, or put a {_FILE} beside the tokenizer"
_SPECIAL = ("bos_token", "eos_token", "unk_token", "pad_token")
Messages = list[dict[str, str]]


def render(tokenizer: Any, messages: Messages, add_generation_prompt: bool) -> str:
    """Return messages as one text; a template that knows no system message does without it.

    The latter is what lm-evaluation-harness does with a task's description.

    :param add_generation_prompt: False leaves the last message open, to be continued
    :raises PruneError: if there is no template, or it refuses the messages
    """
    if tokenizer.chat_template is None:
        raise PruneError(f"the tokenizer {tokenizer.name_or_path} has no chat template", hint=_HINT)
    others = [message for message in messages if message["role"] != "system"]
    for conversation in (messages, others):
        try:
            text: str = tokenizer.apply_chat_template(
                conversation,
                tokenize=False,
                add_generation_prompt=add_generation_prompt,
                continue_final_message=not add_generation_prompt,
            )
            return text
        except (jinja2.exceptions.TemplateError, ValueError) as error:
            said = str(error).partition("\n")[0]
    raise PruneError(f"the chat template refuses a conversation: {said}", hint=_HINT)


def unbegun(text: str, tokenizer: Any) -> str:
    """Take off the token that the tokenizer puts before every text, lest it stand there twice."""
    bos = tokenizer.bos_token
    adds = bos is not None and tokenizer.encode("a")[:1] == [tokenizer.bos_token_id]
    return text.removeprefix(bos) if adds else text


def check_template(folder: Path, system: str | None = None) -> None:
    """Refuse, before anything is loaded, a checkpoint whose chat template cannot be used.

    :param system: what the user wants to tell the model
    :raises PruneError: if the tokenizer has no template, or one that drops ``system``
    """
    template = _template(folder)
    if template is None:
        raise PruneError(f"the tokenizer in {folder} has no chat template", hint=_HINT)
    if system and not _keeps(template, system):
        raise PruneError(
            f"the chat template in {folder} takes no system message",
            hint="leave out --system-instruction",
        )


def _template(folder: Path) -> str | None:
    """Return the template that transformers would take; the first of several named ones."""
    if (folder / _FILE).is_file():
        return read_text(folder / _FILE)
    try:
        found = read_object(folder / "tokenizer_config.json").get("chat_template")
    except PruneError:
        return None
    if isinstance(found, list):
        entries = [entry for entry in found if isinstance(entry, dict)]
        named = {str(entry.get("name")): str(entry.get("template", "")) for entry in entries}
        return named.get("default", next(iter(named.values()), None))
    return str(found) if found else None


def _keeps(template: str, system: str) -> bool:
    """Whether a system message is in the text; True where that is not known."""
    question = {"role": "user", "content": "?"}
    try:
        return system.strip() in _text(template, [{"role": "system", "content": system}, question])
    except jinja2.exceptions.TemplateError:
        pass
    try:
        _text(template, [question])
    except jinja2.exceptions.TemplateError:
        return True  # what it refuses is something else, and is said where it is used
    return False


def _text(template: str, messages: Messages) -> str:
    from transformers.utils.chat_template_utils import render_jinja_template

    specials: dict[str, Any] = dict.fromkeys(_SPECIAL, "")
    found: Any = render_jinja_template([messages], chat_template=template, **specials)
    return str(found[0][0])
