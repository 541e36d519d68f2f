"""From a source's rows to token sequences: `Documents`, and what became of every row."""

from __future__ import annotations

from array import array
from collections.abc import Generator, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from offline.results.text_use import TextUse
from offline.texts.chat import ChatTemplate, chat_ids
from offline.texts.encode import encoded, plain_ids
from offline.texts.forms import Chat, Form, Pair, form_of
from offline.texts.row import Row, Skip
from offline.texts.source import Source
from offline.texts.tally import Tally
from vllm_moe_prune.errors import PruneError

Ids: TypeAlias = "array[int]"  # of tokens, 8 bytes each


@dataclass(frozen=True, slots=True)
class Way:
    """How rows become sequences.

    :param pack: documents are joined by the end-of-text token and cut as they come; otherwise a
        sequence is the beginning of one document, which must be long enough
    """

    length: int
    pack: bool = True
    chat_template: ChatTemplate = "auto"


@dataclass(slots=True)
class Documents:
    """The documents of one source as token ids, in a seeded order, and a count of its rows."""

    source: Source
    name: str
    tokenizer: Any
    way: Way
    made: int = 0  # tokens
    tally: Tally = field(default_factory=Tally)

    def read(self, key: str | None, most: int) -> Iterator[Ids]:
        """Yield documents with the end-of-text token behind each.

        :param key: gives the order; None is that in which they lie there
        :param most: tokens of a document that are of use; the rest is not read
        :raises PruneError: if a row cannot be read, or the tokenizer has no end-of-text token
        """
        if self.tokenizer.eos_token_id is None:
            raise PruneError(
                "the model's tokenizer has no end-of-text token to join documents with"
            )
        most = most if self.way.pack else self.way.length
        rows = self.source.rows() if key is None else self.source.ordered(key)
        for row in rows:
            self.tally.rows += 1
            try:
                ids = self._ids(row, most)
            except Skip as skip:
                self.tally.skip(row, skip)
                continue
            self.tally.used += 1
            self.made += len(ids)
            yield ids

    def use(self, tokens: int) -> TextUse:
        """Say what became of the rows.

        :param tokens: that are in sequences
        """
        return self.tally.use(tokens, max(self.made - tokens, 0), self.source.revision)

    def _ids(self, row: Row, most: int) -> Ids:
        found = array("q")
        with closing(self._parts(form_of(row, self.source.column), row.place)) as parts:
            for part in parts:
                found.extend(part)
                if len(found) >= most:
                    del found[most:]
                    return found
        end = self.tokenizer.eos_token_id
        if not found or (len(found) == 1 and found[0] == end):
            raise Skip("no tokens")
        if found[-1] != end:
            found.append(end)
        if not self.way.pack and len(found) < self.way.length:
            raise Skip(f"shorter than {self.way.length} tokens")
        return found

    def _parts(self, form: Form, place: str) -> Generator[list[int]]:
        if isinstance(form, Chat):
            yield chat_ids(form, self.tokenizer, self.way.chat_template, place)
        elif isinstance(form, Pair):
            yield encoded(form.prompt + form.answer, self.tokenizer)
        else:
            yield from plain_ids(form.text, self.tokenizer)
