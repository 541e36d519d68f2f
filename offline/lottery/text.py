"""The text of a lottery: to score on, to tune on and to measure on, no sequence in two of them.

Nor is a document, wherever a source has enough of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from offline.calibration.corpus import Domain, Part, domain_of, ordered_documents, tokens_of
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
    apart: Mapping[str, Sequence[str]] | None = None,
) -> LotteryText:
    """Deal the documents of every part out: first to score on, then to measure on, then to tune.

    The text to score on is the same that `load_domains` gives. A domain of the demo is measured on
    the documents that its own held-out split has.

    :param held_out: sequences of each domain to measure on
    :param apart: domain -> documents to measure on, where they are kept elsewhere
    :param tune_tokens: to tune on in all; each domain gives its share, or all it has
    :raises PruneError: if a domain has too little text
    """
    share = -(-tune_tokens // (len(parts) * length))
    kept = {p.name: (apart or {}).get(p.name) or _held_out(p) for p in parts}
    dealt = [_deal(p, tokenizer, length, held_out, share, seed, kept[p.name]) for p in parts]
    score, measured, tune = zip(*dealt, strict=True)
    return LotteryText(score, tuple(d for d in tune if d is not None), measured)


def _deal(
    part: Part,
    tokenizer: Any,
    length: int,
    held_out: int,
    share: int,
    seed: int,
    apart: Sequence[str],
) -> tuple[Domain, Domain, Domain | None]:
    documents, split = ordered_documents(part, seed)
    read: list[list[int]] = []

    def reading() -> Iterator[list[int]]:
        """Tokenise no more than is asked for: a source may be much larger than what is needed."""
        for text in documents:
            read.append(tokens_of(text, tokenizer))
            yield read[-1]

    needs = (part.sequences, 0 if apart else held_out, share)
    found = _by_document(reading(), needs, length)
    if not _enough(found, needs):  # all is read; there may be one long document, for example
        found = _by_sequence(read, needs, length)
    score, measured, tune = found
    if apart:
        own = (tokens_of(text, tokenizer) for text in apart)
        (measured,) = _by_document(own, (held_out,), length)
    if not _enough((score, measured, tune), (part.sequences, held_out, share)):
        raise PruneError(
            f"domain {part.name} has too little text: it needs sequences of {length} tokens, "
            f"{part.sequences} to score on, {held_out} to measure on, and more to tune on",
            hint=f"fewer to score on ({part.source}:N), or a smaller --held-out or --length",
        )
    return (
        domain_of(part.name, split, score),
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
