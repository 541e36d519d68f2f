"""Text to calibrate on: what `--calibration` names, cut into token sequences of one length.

Sequences have no padding, so every token that is counted is real text. The documents of a domain
come in a seeded order, joined by the end-of-text token, and are cut as they come: a model sees
what it saw in pre-training, and nothing is lost at the ends of documents.
"""

from __future__ import annotations

import hashlib
import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vllm_moe_prune.errors import PruneError
from vllm_moe_prune.provenance import DataIdentity

DEFAULT = "default"
DEFAULT_SEQUENCES = 32
DEFAULT_LENGTH = 512  # MC-Suite has 2048 (appendix C)
# The demo's other two domains are fetched with npm, which not every machine has.
_DEFAULT_DOMAINS = ("code", "maths", "everyday", "stories", "science", "encyclopedia")
_TASK = "task:"
_FILES = (".txt", ".jsonl")
_PART = re.compile(r"(?:(?P<name>[\w.@-]+)=)?(?P<source>[^=]+?)(?::(?P<sequences>\d+))?")


@dataclass(frozen=True, slots=True)
class Part:
    """One part of a mixture: where a domain's text is, and how many sequences are wanted of it."""

    name: str
    source: str
    sequences: int


@dataclass(frozen=True, slots=True)
class Domain:
    """The calibration text of one domain, as tokens."""

    name: str
    token_ids: NDArray[np.int64]  # [sequences, length]
    identity: DataIdentity

    @property
    def num_tokens(self) -> int:
        """Tokens in all sequences."""
        return int(self.token_ids.size)


def parse_calibration(spec: str, sequences: int = DEFAULT_SEQUENCES) -> tuple[Part, ...]:
    """Read ``[NAME=]SOURCE[:SEQUENCES],...``; reads no text yet.

    A source is a domain of the demo, ``default`` for six of them, a .txt or .jsonl file, or
    ``task:NAME`` for the items that a task has to search with.

    :param sequences: of each part that does not say how many
    :raises PruneError: if a part is no source or two domains have one name
    """
    parts = tuple(part for text in spec.split(",") for part in _parts(text.strip(), sequences))
    names = [part.name for part in parts]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise PruneError(
            f"--calibration {spec}: two domains are called {twice}",
            hint=f"give one another name: other={parts[names.index(twice)].source}",
        )
    return parts


def load_domains(
    parts: Sequence[Part], tokenizer: Any, *, length: int = DEFAULT_LENGTH, seed: int = 0
) -> tuple[Domain, ...]:
    """Read, tokenise and cut the text of every part.

    :param tokenizer: of transformers, with an end-of-text token
    :param length: tokens of every sequence
    :param seed: of the order of the documents
    :raises PruneError: if text cannot be had, or a domain has too little of it
    """
    return tuple(_domain(part, tokenizer, length, seed) for part in parts)


def _parts(text: str, sequences: int) -> Iterator[Part]:
    from offline.data.domains import DOMAINS

    found = _PART.fullmatch(text)
    if found is None:
        raise PruneError(f"--calibration: cannot read {text!r}", hint="[NAME=]SOURCE[:SEQUENCES]")
    name, source = found["name"], found["source"]
    count = sequences if found["sequences"] is None else int(found["sequences"])
    if count < 1:
        raise PruneError(f"--calibration {text}: at least one sequence is needed")
    if source == DEFAULT:
        if name is not None:
            raise PruneError(f"--calibration {text}: {DEFAULT} is several domains with own names")
        yield from (Part(domain, domain, count) for domain in _DEFAULT_DOMAINS)
    elif source in DOMAINS:
        yield Part(name or source, source, count)
    elif source.startswith(_TASK):
        yield Part(name or _task(source).name, source, count)
    elif Path(source).suffix in _FILES:
        if not Path(source).is_file():
            raise PruneError(f"--calibration {text}: no text file at {source}")
        yield Part(name or Path(source).stem, source, count)
    else:
        known = ", ".join((DEFAULT, *DOMAINS))
        raise PruneError(
            f"--calibration: unknown source {source!r}",
            hint=f"known: {known}; task:NAME; or the path of a .txt or .jsonl file",
        )


def _task(source: str) -> Any:
    from offline.tasks.catalog import get_task

    return get_task(source.removeprefix(_TASK))


def _documents(source: str) -> tuple[list[str], str]:
    """Return the documents of a source, and which split of it they are."""
    from offline.data.domains import DOMAINS, load_corpora

    if source in DOMAINS:
        return load_corpora(names=[source])[source].train, "train"
    if source.startswith(_TASK):
        return _items(source), "search"
    from offline.tasks.texts import read_documents

    return list(read_documents(Path(source)).values()), ""


def _items(source: str) -> list[str]:
    """Return the items that a task has to search with, each with a right answer behind it."""
    from offline.tasks.splits import examples, load_items

    task = _task(source)
    items, before = load_items(task, "search"), examples(task)
    if task.kind == "text":
        return [item.query for item in items]
    return [f"{before}{item.query} {item.answer}" for item in items]


def ordered_documents(part: Part, seed: int) -> tuple[list[str], str]:
    """Return the documents of a part in a seeded order, and which split of its source they are.

    :raises PruneError: if the text cannot be had
    """
    documents, split = _documents(part.source)
    random.Random(f"{part.name} {seed}").shuffle(documents)
    return documents, split


def tokens_of(text: str, tokenizer: Any) -> list[int]:
    """Return a document's token ids with the end-of-text token behind them.

    :raises PruneError: if the tokenizer has none
    """
    if tokenizer.eos_token_id is None:
        raise PruneError("the model's tokenizer has no end-of-text token to join documents with")
    return [*tokenizer.encode(text, add_special_tokens=False), tokenizer.eos_token_id]


def domain_of(name: str, split: str, token_ids: NDArray[np.int64]) -> Domain:
    """Return sequences [N, L] as a domain, named by their content."""
    digest = hashlib.sha256(token_ids.astype("<i8").tobytes()).hexdigest()
    count = len(token_ids)
    identity = DataIdentity(name=name, split=split, count=count, sha256=f"sha256:{digest}")
    return Domain(name, token_ids, identity)


def _domain(part: Part, tokenizer: Any, length: int, seed: int) -> Domain:
    documents, split = ordered_documents(part, seed)
    wanted, ids = part.sequences * length, list[int]()
    for text in documents:
        ids += tokens_of(text, tokenizer)
        if len(ids) >= wanted:
            break
    if len(ids) < wanted:
        has = len(ids) // length
        raise PruneError(
            f"domain {part.name} has text for {has} sequences of {length} tokens, "
            f"not {part.sequences}",
            hint=f"ask for {part.source}:{has}" if has else "take a smaller --length or more text",
        )
    token_ids = np.array(ids[:wanted], dtype=np.int64).reshape(part.sequences, length)
    return domain_of(part.name, split, token_ids)
