"""Text that a model is measured on, as documents; held-out ones where a source has any."""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from offline.results.estimate import FEWEST
from offline.texts.reading import Documents, Ids, Way
from offline.texts.source import Listed, Source, check_source, open_source
from offline.texts.spec import TASK, Grammar, Part, is_read_whole
from vllm_moe_prune.errors import PruneError
from vllm_moe_prune.provenance import DataIdentity

if TYPE_CHECKING:
    from offline.tasks.catalog import Task

DEFAULT_DOCUMENTS = 100
DEFAULT_LENGTH = 512
LISTED = 256  # tokens of a distribution that are compared one by one
LISTED_BY_SERVERS = 20  # as many as vLLM tells unless told otherwise


@dataclass(frozen=True, slots=True)
class TextAsked:
    """Which text is read, and of which domains next tokens are compared with the base's.

    :param length: the most tokens of a document
    :param seed: of the order of documents and of intervals
    """

    parts: tuple[Part, ...]
    compared: frozenset[str] = frozenset()
    length: int = DEFAULT_LENGTH
    seed: int = 0


@dataclass(frozen=True, slots=True)
class DomainText:
    """The documents of one domain as token ids, each with the token before a text in front.

    ``pieces`` says that documents are pieces of fewer, longer ones.
    """

    name: str
    texts: tuple[tuple[int, ...], ...]
    identity: DataIdentity
    pieces: bool = False


def parse_texts(flag: str, spec: str, documents: int = DEFAULT_DOCUMENTS) -> tuple[Part, ...]:
    """Read ``[NAME=]SOURCE[:DOCUMENTS],...`` (docs/text.md); looks at the beginning of each source.

    :param flag: to name in errors
    :param documents: of each part that does not say how many
    :raises PruneError: if a part is no source, two domains have one name, or the first rows of a
        source have no form
    """
    parts = Grammar(flag, documents, lambda name: _task(name).name).parts(spec)
    for part in parts:
        if not is_read_whole(part.source):
            check_source(part.source)
    return parts


def load_texts(asked: TextAsked, tokenizer: Any, prefix: int) -> tuple[DomainText, ...]:
    """Read the first tokens of documents of every part, in the seed's order.

    Of a demo's domain these are its held-out documents, of a task its test items with a right
    answer. A source of very few documents is read in pieces.

    :param tokenizer: of transformers, with an end-of-text token
    :param prefix: token that stands before a text
    :raises PruneError: if text cannot be had, or a part has none
    """
    return tuple(_domain(part, tokenizer, prefix, asked.length, asked.seed) for part in asked.parts)


def _domain(part: Part, tokenizer: Any, prefix: int, length: int, seed: int) -> DomainText:
    source = _source(part)
    wanted, key = part.sequences, f"{part.name} {seed}"

    def read(most: int) -> tuple[list[Ids], Documents]:
        documents = Documents(source, part.name, tokenizer, Way(length))
        return [
            ids for ids, _ in zip(documents.read(key, most), range(wanted), strict=False)
        ], documents

    found, documents = read(length)
    pieces = len(found) < min(FEWEST, wanted)
    if pieces and any(len(ids) >= length for ids in found):
        found = list(_pieces(read(length * wanted)[0], length))[:wanted]
    else:
        pieces = False
    if not found:
        raise PruneError(f"domain {part.name} has no text{documents.tally.why()}")
    texts = tuple((prefix, *ids) for ids in found)
    digest = hashlib.sha256(np.concatenate([np.array(t, "<i8") for t in texts]).tobytes())
    identity = DataIdentity(
        name=part.name,
        split=source.split,
        count=len(texts),
        sha256=f"sha256:{digest.hexdigest()}",
    )
    return DomainText(part.name, texts, identity, pieces)


def _pieces(documents: Sequence[Ids], length: int) -> Iterator[array[int]]:
    """Yield the first pieces of all documents, then the second ones, ..."""
    longest = max(map(len, documents), default=0)
    for begin in range(0, longest, length):
        yield from (ids[begin : begin + length] for ids in documents if len(ids) > begin)


def _source(part: Part) -> Source:
    from offline.data.domains import DOMAINS, load_corpora

    if part.source in DOMAINS:
        return Listed.of(
            load_corpora(names=[part.source])[part.source].heldout, part.source, "heldout"
        )
    if part.source.startswith(TASK):
        return Listed.of(_items(part.source.removeprefix(TASK)), part.source, "test")
    return open_source(part.source)


def _task(name: str) -> Task:
    """Return a task whose items are read as text; nothing that a model writes is executed."""
    from offline.tasks.catalog import Library, get_task

    return get_task(name, Library(allow_code=True))


def _items(name: str) -> list[str]:
    """Return the held-out items of a task, each with a right answer behind it."""
    from offline.tasks.splits import load_items

    task = _task(name)
    items = load_items(task, "test")
    if task.kind == "text":
        return [item.query for item in items]
    return [f"{item.query} {item.answer}" for item in items]
