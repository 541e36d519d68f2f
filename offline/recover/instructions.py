"""Instructions of a source of text: rows with a prompt and its answer, or chats (docs/text.md).

Chats go through the model's chat template, and every turn of the assistant is an example whose
prompt is all that was said before.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from offline.texts.chat import ChatTemplate, rendered
from offline.texts.files import stem_of
from offline.texts.forms import FORMS, Chat, Pair, check_characters, form_of
from offline.texts.row import Row, Skip
from offline.texts.source import check_source
from offline.texts.spec import Grammar, Part, split_column
from offline.texts.tally import Tally
from vllm_moe_prune.errors import PruneError

Instruction = tuple[str, str, str]  # question, prompt, answer
_BETWEEN = "\n\n"  # messages that go through no template


def parse_data(data: str) -> tuple[Part, ...]:
    """Read ``[NAME=]SOURCE[:ROWS],...``; looks at the beginning of each source, needs no torch.

    :raises PruneError: if a part is no source, or its first rows have no form
    """
    from offline.data.domains import DOMAINS

    if Path(data).is_file():  # whose name may have a comma
        parts: tuple[Part, ...] = (Part(stem_of(Path(data)), data, sys.maxsize),)
    else:
        parts = Grammar("--data", sys.maxsize, plain=False).parts(data)
    for part in parts:
        if part.source in DOMAINS:
            raise PruneError(f"--data: {part.source} has no answer to learn, only text", hint=FORMS)
        check_source(part.source)
    return parts


@dataclass(slots=True)
class Instructions:
    """The examples of one part, and a count of its rows.

    :param tokenizer: of transformers; its chat template is for rows with roles
    """

    part: Part
    tokenizer: Any
    template: ChatTemplate = "auto"
    tally: Tally = field(default_factory=Tally)

    @property
    def name(self) -> str:
        """What examples and their identity are called by: a file by its own name."""
        path = Path(split_column(self.part.source)[0])
        return path.name if path.is_file() else self.part.name

    def read(self) -> Iterator[Instruction]:
        """Yield (question, prompt, answer) of every example.

        :raises PruneError: if the source cannot be read or holds no example, or naming the row
            that has none of the forms
        """
        source = check_source(self.part.source)
        for row in islice(source.rows(), self.part.sequences):
            self.tally.rows += 1
            try:
                found = self._examples(row, source.column)
            except Skip as skip:
                self.tally.skip(row, skip)
                continue
            self.tally.used += 1
            yield from found
        if not self.tally.used:
            why = self.tally.why()
            raise PruneError(f"{self.part.source} holds no example{why}", hint=FORMS)

    def _examples(self, row: Row, column: str | None) -> Sequence[Instruction]:
        form = form_of(row, column)
        if isinstance(form, Pair):
            return [(form.prompt, form.prompt, form.answer)]
        if not isinstance(form, Chat):
            raise PruneError(f"{row.place} has no answer to learn, only text", hint=FORMS)
        found = list(self._turns(form, row.place))
        if not found:
            raise Skip("no turn of the role assistant")
        return found

    def _turns(self, chat: Chat, place: str) -> Iterator[Instruction]:
        for number, message in enumerate(chat.messages):
            if message["role"] != "assistant":
                continue
            before = chat.messages[:number]
            prompt = self._rendered(before, chat, place, add_generation_prompt=True)
            whole = self._rendered([*before, message], chat, place)
            if not whole.startswith(prompt) or not (
                answer := _unended(whole[len(prompt) :], self.tokenizer)
            ):
                raise Skip("a chat template that puts no answer behind its prompt")
            asked = [m["content"] for m in before if m["role"] == "user"]
            question = asked[-1] if asked and isinstance(asked[-1], str) else prompt
            yield question, _unbegun(prompt, self.tokenizer), answer

    def _rendered(
        self, messages: list[dict[str, Any]], chat: Chat, place: str, **options: Any
    ) -> str:
        if self.template == "never":
            text = Chat(messages).as_text()
            return text + _BETWEEN if options and text else text
        text = rendered(messages, self.tokenizer, place, tools=chat.tools, **options)
        check_characters(text)
        return text


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
