"""Text to calibrate on: what `--calibration` names, cut into token sequences of one length.

Sequences have no padding, so every token that is counted is real text. The documents of a domain
come in a seeded order, joined by the end-of-text token, and are cut as they come: a model sees
what it saw in pre-training, and nothing is lost at the ends of documents. Without packing every
sequence is the beginning of one document.
"""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import JsonValue

from offline.results.text_use import TextUse
from offline.texts.chat import ChatTemplate
from offline.texts.reading import Documents, Way
from offline.texts.source import Listed, Source, check_source, open_source
from offline.texts.spec import TASK, Grammar, Part, is_read_whole
from vllm_moe_prune.errors import PruneError
from vllm_moe_prune.provenance import DataIdentity, Provenance

if TYPE_CHECKING:
    from offline.tasks.catalog import Task

DEFAULT_SEQUENCES = 32
DEFAULT_LENGTH = 512  # MC-Suite has 2048 (appendix C)


@dataclass(frozen=True, slots=True)
class Domain:
    """The calibration text of one domain, as tokens."""

    name: str
    token_ids: NDArray[np.int64]  # [sequences, length]
    identity: DataIdentity
    use: TextUse | None = None  # of its source's rows; None where it is of no source

    @property
    def num_tokens(self) -> int:
        """Tokens in all sequences."""
        return int(self.token_ids.size)


def parse_calibration(
    spec: str, sequences: int = DEFAULT_SEQUENCES, *, flag: str = "--calibration"
) -> tuple[Part, ...]:
    """Read ``[NAME=]SOURCE[:SEQUENCES],...`` (docs/text.md); looks at the beginning of each source.

    Needs no torch, and asks the hub alone for what lies there.

    :param sequences: of each part that does not say how many
    :param flag: to name in errors
    :raises PruneError: if a part is no source, two domains have one name, or the first rows of a
        source have no form
    """
    parts = Grammar(flag, sequences, _task_name).parts(spec)
    for part in parts:
        if not is_read_whole(part.source):
            check_source(part.source)
    return parts


def way_of(
    part: Part,
    *,
    length: int | None = None,
    pack: bool | None = None,
    chat_template: ChatTemplate = "auto",
) -> Way:
    """Return how a part becomes sequences: as is said, else as its mix says, else the default."""
    packs = part.pack if pack is None else pack
    return Way(
        length or part.length or DEFAULT_LENGTH, True if packs is None else packs, chat_template
    )


def load_domains(
    parts: Sequence[Part],
    tokenizer: Any,
    *,
    length: int | None = None,
    pack: bool | None = None,
    chat_template: ChatTemplate = "auto",
    seed: int = 0,
) -> tuple[Domain, ...]:
    """Read, tokenise and cut the text of every part.

    :param tokenizer: of transformers, with an end-of-text token
    :param length: tokens of every sequence; what a mix says, or `DEFAULT_LENGTH`, if None
    :param pack: whether documents share sequences; what a mix says, or yes, if None
    :param seed: of the order of the documents
    :raises PruneError: if text cannot be had, or a domain has too little of it
    """
    ways = (way_of(p, length=length, pack=pack, chat_template=chat_template) for p in parts)
    return tuple(_domain(p, tokenizer, way, seed) for p, way in zip(parts, ways, strict=True))


def documents_of(part: Part, tokenizer: Any, way: Way) -> Documents:
    """Return the documents of a part, of which nothing is read yet.

    :raises PruneError: if the text cannot be had
    """
    source: Source
    if part.source.startswith(TASK):
        items = _items(part.source)
        source = Listed.of(items, part.source, "search")
    else:
        source = open_source(part.source)
    return Documents(source, part.name, tokenizer, way)


def order_of(part: Part, seed: int) -> str:
    """Return the key of a part's order."""
    return f"{part.name} {seed}"


def domain_of(
    name: str, split: str, token_ids: NDArray[np.int64], use: TextUse | None = None
) -> Domain:
    """Return sequences [N, L] as a domain, named by their content."""
    digest = hashlib.sha256(token_ids.astype("<i8").tobytes()).hexdigest()
    count = len(token_ids)
    identity = DataIdentity(name=name, split=split, count=count, sha256=f"sha256:{digest}")
    return Domain(name, token_ids, identity, use)


def uses_of(domains: Sequence[Domain]) -> dict[str, TextUse]:
    """Return domain -> what became of its source's rows."""
    return {domain.name: domain.use for domain in domains if domain.use is not None}


_TEXT = "text"  # in the settings of what was made of it


def text_settings(domains: Sequence[Domain]) -> dict[str, JsonValue]:
    """Return what became of the text for the provenance of what is made of it."""
    uses = uses_of(domains)
    return {_TEXT: {n: u.model_dump(mode="json", exclude_none=True) for n, u in uses.items()}}


def text_used(provenance: Provenance) -> dict[str, TextUse]:
    """Return what `text_settings` put there; nothing where an older version made it."""
    found = provenance.settings.get(_TEXT)
    uses = found if isinstance(found, dict) else {}
    return {name: TextUse.model_validate(use) for name, use in uses.items()}


def _domain(part: Part, tokenizer: Any, way: Way, seed: int) -> Domain:
    documents = documents_of(part, tokenizer, way)
    wanted, ids = part.sequences * way.length, array("q")
    for found in documents.read(order_of(part, seed), wanted):
        ids.extend(found)
        if len(ids) >= wanted:
            break
    if len(ids) < wanted:
        has = len(ids) // way.length
        raise PruneError(
            f"domain {part.name} has text for {has} sequences of {way.length} tokens, "
            f"not {part.sequences}{documents.tally.why()}",
            hint=f"ask for {part.source}:{has}" if has else "take a smaller --length or more text",
        )
    token_ids = np.array(ids[:wanted], dtype=np.int64).reshape(part.sequences, way.length)
    return domain_of(part.name, documents.source.split, token_ids, documents.use(wanted))


def _task_name(name: str) -> str:
    return _task(name).name


def _task(name: str) -> Task:
    """Return a task whose items are read as text; nothing that a model writes is executed."""
    from offline.tasks.catalog import Library, get_task

    return get_task(name, Library(allow_code=True))


def _items(source: str) -> list[str]:
    """Return the items that a task has to search with, each with a right answer behind it."""
    from offline.tasks.splits import examples, load_items

    task = _task(source.removeprefix(TASK))
    items, before = load_items(task, "search"), examples(task)
    if task.kind == "text":
        return [item.query for item in items]
    return [f"{before}{item.query} {item.answer}" for item in items]
