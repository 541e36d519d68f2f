"""Perplexity of documents and agreement with the base on them: from readings to numbers."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from offline.engines.reading import Reading, divergence, same_first
from offline.fitness.documents import LISTED, DomainText, TextAsked, load_texts
from offline.results.estimate import Estimate, bootstrap
from offline.results.text_quality import DomainQuality
from vllm_moe_prune.errors import PruneError

if TYPE_CHECKING:
    from offline.engines.encoding import Encoder
    from vllm_moe_prune.routing_map import RoutingMap

_AT_ONCE = 1 << 16  # tokens of texts that are handed to an engine at the same time

Readings = Mapping[str, Sequence[Reading]]  # by domain
Sums = NDArray[np.float64]


@runtime_checkable
class ReadingEngine(Protocol):
    """An engine in this process that is any map of its base, and reads."""

    @property
    def reader(self) -> Encoder:
        """Return what reads texts with the map now applied."""

    def apply(self, routing_map: RoutingMap | None) -> None:
        """Behave as a map says; None is the base."""


@dataclass(slots=True)
class TextBench:
    """Measures maps of one base on documents that the base reads once.

    :raises PruneError: if text cannot be had, or is too long for the model
    """

    engine: ReadingEngine
    asked: TextAsked
    domains: tuple[DomainText, ...] = field(init=False)
    _base: Readings | None = None

    def __post_init__(self) -> None:
        reader = self.engine.reader
        self.domains = load_texts(self.asked, reader.tokenizer, reader.prefix_token_id)
        check_lengths(self.domains, reader)

    def measure(self, routing_map: RoutingMap | None) -> tuple[DomainQuality, ...]:
        """Return what a map makes of the documents, beside the base; the map stays applied."""
        compared = self.asked.compared
        if self._base is None:
            self.engine.apply(None)
            self._base = read_texts(
                self.engine.reader, self.domains, listed=LISTED, compared=compared
            )
        self.engine.apply(routing_map)
        own = read_texts(
            self.engine.reader, self.domains, listed=LISTED, compared=compared, base=self._base
        )
        return qualities(self.domains, own, self._base, self.asked.seed)


def check_lengths(domains: Iterable[DomainText], reader: Encoder) -> None:
    """Refuse documents that a model cannot read whole.

    :raises PruneError: naming the most that it can
    """
    longest = max(len(text) for domain in domains for text in domain.texts) - 1
    if longest > reader.max_length:
        raise PruneError(
            f"--length {longest}: the model takes at most {reader.max_length} tokens",
            hint=f"--length {reader.max_length} or less",
        )


def read_texts(
    reader: Encoder,
    domains: Sequence[DomainText],
    *,
    listed: int = 0,
    compared: Collection[str] = (),
    base: Readings | None = None,
) -> dict[str, list[Reading]]:
    """Let a model read all documents.

    :param listed: likeliest tokens to keep of each place, of domains that are ``compared``
    :param base: what was read before; the tokens that it lists are listed
    :returns: domain -> one reading per document
    """
    found: dict[str, list[Reading]] = {}
    for domain in domains:
        count = listed if domain.name in compared else 0
        known = base[domain.name] if base is not None and count else None
        found[domain.name] = []
        for part in _parts([len(text) for text in domain.texts]):
            wanted = None if known is None else [reading.tokens for reading in known[part]]
            found[domain.name] += reader.readings(domain.texts[part], count, wanted)
    return found


def _parts(lengths: Sequence[int]) -> Iterable[slice]:
    """Cut texts into parts of a bounded number of tokens."""
    begin = total = 0
    for number, length in enumerate(lengths):
        if number > begin and total + length > _AT_ONCE:
            yield slice(begin, number)
            begin, total = number, 0
        total += length
    yield slice(begin, len(lengths))


def qualities(
    domains: Sequence[DomainText], own: Readings, base: Readings | None, seed: int = 0
) -> tuple[DomainQuality, ...]:
    """Return what the readings of each domain say, beside the base's if there are any."""
    return tuple(
        _quality(domain, own[domain.name], None if base is None else base[domain.name], seed)
        for domain in domains
    )


def _quality(
    domain: DomainText, own: Sequence[Reading], base: Sequence[Reading] | None, seed: int
) -> DomainQuality:
    sums = _loss(own)
    fields: dict[str, Any] = {
        "name": domain.name,
        "documents": len(own),
        "tokens": int(sums[:, 1].sum()),
        "pieces": domain.pieces,
        "perplexity": _perplexity(sums, seed),
    }
    if base is None:
        return DomainQuality(**fields)
    before = _loss(base)
    more = np.stack([sums[:, 0] - before[:, 0], sums[:, 1]], axis=1)
    fields |= {"base_perplexity": _perplexity(before, seed), "ratio": _perplexity(more, seed)}
    listed = own[0].listed.shape[1]
    if listed:
        pairs = list(zip(base, own, strict=True))
        tokens = sums[:, 1]
        same = np.array([float(same_first(*pair).sum()) for pair in pairs])
        apart = np.array([float(divergence(*pair).sum()) for pair in pairs])
        fields |= {
            "same_first": bootstrap(np.stack([same, tokens], axis=1), _mean, seed),
            "divergence": bootstrap(np.stack([apart, tokens], axis=1), _mean, seed),
            "listed": listed,
            "divergence_is_least": own[0].least is not None,
        }
    return DomainQuality(**fields)


def _loss(readings: Sequence[Reading]) -> Sums:
    """Return the summed negative log-likelihood and the number of tokens of each text, [N, 2]."""
    return np.array([(-one.log_probs.sum(), len(one.log_probs)) for one in readings])


def _perplexity(sums: Sums, seed: int) -> Estimate:
    return bootstrap(sums, lambda total: np.exp(_mean(total)), seed)


def _mean(total: Sums) -> Sums:
    return np.asarray(total[..., 0] / total[..., 1])
