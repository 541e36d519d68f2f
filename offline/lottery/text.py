"""The text of a lottery: to score on, to tune on and to measure on, no sequence in two of them.

Nor is a document, wherever a source has enough of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from offline.calibration.corpus import (
    Domain,
    documents_of,
    domain_of,
    order_of,
    way_of,
)
from offline.texts.chat import ChatTemplate
from offline.texts.reading import Documents
from offline.texts.source import Listed
from offline.texts.spec import Part
from vllm_moe_prune.errors import PruneError

Sequences = NDArray[np.int64]  # [N, length]


@dataclass(frozen=True, slots=True)
class LotteryText:
    """Sequences by what they are for; ``tune`` is empty where nothing is tuned."""

    score: tuple[Domain, ...]
    tune: tuple[Domain, ...]
    held_out: tuple[Domain, ...]


def load_text(
    parts: Sequence[Part],
    tokenizer: Any,
    *,
    length: int,
    held_out: int,
    tune_tokens: int,
    seed: int,
    pack: bool | None = None,
    chat_template: ChatTemplate = "auto",
    apart: Mapping[str, Sequence[str]] | None = None,
) -> LotteryText:
    """Deal the documents of every part out: first to score on, then to measure on, then to tune.

    The text to score on is the same that `load_domains` gives. A domain of the demo is measured on
    the documents that its own held-out split has.

    :param held_out: sequences of each domain to measure on
    :param pack: whether documents share sequences
    :param apart: domain -> documents to measure on, where they are kept elsewhere
    :param tune_tokens: to tune on in all; each domain gives its share, or all it has
    :raises PruneError: if a domain has too little text
    """
    share = -(-tune_tokens // (len(parts) * length))
    kept = {p.name: (apart or {}).get(p.name) or _held_out(p) for p in parts}
    dealt = []
    for part in parts:
        way = way_of(part, length=length, pack=pack, chat_template=chat_template)
        documents, needs = documents_of(part, tokenizer, way), (part.sequences, held_out, share)
        dealt.append(_deal(documents, needs, order_of(part, seed), part, kept[part.name]))
    score, measured, tune = zip(*dealt, strict=True)
    return LotteryText(score, tuple(d for d in tune if d is not None), measured)


def _deal(
    documents: Documents, needs: tuple[int, int, int], key: str, part: Part, apart: Sequence[str]
) -> tuple[Domain, Domain, Domain | None]:
    """Deal a part's documents out.

    :param needs: sequences to score, to measure and to tune on
    """
    scored, held_out, share = needs
    way, split, read = documents.way, documents.source.split, list[Sequence[int]]()

    def reading() -> Iterator[Sequence[int]]:
        """Tokenise no more than is asked for: a source may be much larger than what is needed."""
        for ids in documents.read(key, sum(needs) * way.length):
            read.append(ids)
            yield ids

    own = (scored, 0 if apart else held_out, share)
    found = _by_document(reading(), own, way.length)
    if not _enough(found, own):  # all is read; there may be one long document, for example
        found = _by_sequence(read, own, way.length)
    score, measured, tune = found
    if apart:
        kept = Documents(Listed.of(apart, part.source, ""), part.name, documents.tokenizer, way)
        (measured,) = _by_document(kept.read(None, held_out * way.length), (held_out,), way.length)
    if not _enough((score, measured, tune), needs):
        raise PruneError(
            f"domain {part.name} has too little text: it needs sequences of {way.length} tokens, "
            f"{scored} to score on, {held_out} to measure on, and more to tune on"
            f"{documents.tally.why()}",
            hint=f"fewer to score on ({part.source}:N), or a smaller --held-out or --length",
        )
    use = documents.use(sum(one.size for one in found))
    return (
        domain_of(part.name, split, score, use),
        domain_of(part.name, "held-out", measured),
        domain_of(part.name, split, tune) if share else None,
    )


def _held_out(part: Part) -> list[str]:
    """Return the documents that a source itself keeps apart; none where it has no such split."""
    from offline.data.domains import DOMAINS, load_corpora

    if part.source not in DOMAINS:
        return []
    return list(load_corpora(names=[part.source])[part.source].heldout)


def _enough(found: Sequence[Sequences], needs: Sequence[int]) -> bool:
    """Whether there is as much as is needed; of the last, to tune on, one sequence will do."""
    least = (*needs[:-1], min(needs[-1], 1))
    return all(len(one) >= need for one, need in zip(found, least, strict=True))


def _by_document(
    documents: Iterable[Sequence[int]], needs: Sequence[int], length: int
) -> list[Sequences]:
    """Fill each need with whole documents; the end of its last one is left out.

    :returns: for each need at most so many sequences, [N, length]
    """
    rest, found = iter(documents), []
    for need in needs:
        ids: list[int] = []
        while len(ids) < need * length and (document := next(rest, None)) is not None:
            ids += document
        found.append(_cut(ids, need, length))
    return found


def _by_sequence(
    documents: Sequence[Sequence[int]], needs: Sequence[int], length: int
) -> list[Sequences]:
    """Fill each need with the next sequences, wherever documents end."""
    ids = [token for document in documents for token in document]
    found, begin = [], 0
    for need in needs:
        found.append(_cut(ids[begin:], need, length))
        begin += len(found[-1]) * length
    return found


def _cut(ids: Sequence[int], need: int, length: int) -> Sequences:
    count = min(len(ids) // length, need)
    return np.array(ids[: count * length], dtype=np.int64).reshape(count, length)
