"""Instructions in a JSONL file: ``{"prompt", "response"}``, or ``{"messages": [...]}`` per line.

Messages go through the model's chat template, and every turn of the assistant is an example whose
prompt is all that was said before.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from offline.tasks.texts import read_text
from vllm_moe_prune.errors import PruneError

Instruction = tuple[str, str, str]  # question, prompt, answer


def read_instructions(file: Path, tokenizer: Any) -> list[Instruction]:
    """Return (question, prompt, answer) of every example.

    :param tokenizer: of transformers; its chat template is for ``messages``
    :raises PruneError: if the file cannot be read or holds no example, or naming the line that is
        neither kind
    """
    found: list[Instruction] = []
    for number, line in enumerate(read_text(file).split("\n"), start=1):
        if line.strip():
            try:
                found += _read(line, tokenizer)
            except PruneError as error:
                raise PruneError(f"{file} line {number}: {error.message}", error.hint) from None
    if not found:
        raise PruneError(f"{file} holds no example", hint=_HINT)
    return found


_HINT = 'one object per line: {"prompt": ..., "response": ...} or {"messages": [...]}'


def _read(line: str, tokenizer: Any) -> Iterator[Instruction]:
    try:
        record: Any = json.loads(line)
    except json.JSONDecodeError as error:
        raise PruneError(f"no JSON: {error.msg}", hint=_HINT) from None
    if not isinstance(record, dict):
        raise PruneError("no object", hint=_HINT)
    if "messages" in record:
        return _turns(_messages(record["messages"]), tokenizer)
    prompt, response = record.get("prompt"), record.get("response")
    if not isinstance(prompt, str) or not isinstance(response, str) or not response.strip():
        raise PruneError("no text in `prompt` and `response`", hint=_HINT)
    return iter([(prompt, prompt, response)])


def _messages(value: Any) -> list[dict[str, str]]:
    messages = value if isinstance(value, list) else []
    for message in messages:
        fields = message if isinstance(message, Mapping) else {}
        if not all(isinstance(fields.get(name), str) for name in ("role", "content")):
            raise PruneError("a message has no text in `role` and `content`", hint=_HINT)
    if not any(message["role"] == "assistant" for message in messages):
        raise PruneError("`messages` has no turn of the role `assistant`", hint=_HINT)
    return [dict(message) for message in messages]


def _turns(messages: list[dict[str, str]], tokenizer: Any) -> Iterator[Instruction]:
    if not getattr(tokenizer, "chat_template", None):
        raise PruneError(
            "the model has no chat template for `messages`", hint="give `prompt` and `response`"
        )
    for place, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        before = messages[:place]
        prompt = _rendered(tokenizer, before, add_generation_prompt=True)
        whole = _rendered(tokenizer, [*before, message])
        if not whole.startswith(prompt) or not (
            answer := _unended(whole[len(prompt) :], tokenizer)
        ):
            raise PruneError(
                f"the chat template does not put turn {place + 1} behind its prompt",
                hint="give `prompt` and `response`",
            )
        asked = [m["content"] for m in before if m["role"] == "user"]
        yield asked[-1] if asked else prompt, _unbegun(prompt, tokenizer), answer


def _rendered(tokenizer: Any, messages: list[dict[str, str]], **options: Any) -> str:
    import jinja2

    try:
        text = tokenizer.apply_chat_template(messages, tokenize=False, **options)
    except (jinja2.TemplateError, ValueError, TypeError) as error:
        reason = " ".join(str(error).split())
        raise PruneError(f"the chat template refuses these messages: {reason}") from None
    return str(text)


def _unbegun(prompt: str, tokenizer: Any) -> str:
    """Take off the token that the tokenizer puts before every text, lest it stand there twice."""
    bos = tokenizer.bos_token
    adds = bos is not None and tokenizer.encode("a")[:1] == [tokenizer.bos_token_id]
    return prompt.removeprefix(bos) if adds else prompt


def _unended(answer: str, tokenizer: Any) -> str:
    """Take off the end-of-text token, which every answer gets (see finetune/examples.py)."""
    end = tokenizer.eos_token
    stripped = answer.rstrip()
    return stripped.removesuffix(end).rstrip() if end and stripped.endswith(end) else answer
