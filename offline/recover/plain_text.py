"""`PlainText`: what is distilled on, text of any kind: a base's next tokens need no answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from offline.calibration.corpus import load_domains, parse_calibration, uses_of
from offline.finetune.examples import Examples, packed
from offline.results.text_use import TextUse
from offline.texts.chat import ChatTemplate
from offline.texts.spec import Part
from vllm_moe_prune.provenance import DataIdentity

DEFAULT_SEQUENCES = 128


def parse_text(data: str) -> tuple[Part, ...]:
    """Read ``[NAME=]SOURCE[:SEQUENCES],...``; looks at the beginning of each source.

    :raises PruneError: as `parse_calibration`
    """
    return parse_calibration(data, DEFAULT_SEQUENCES, flag="--data")


@dataclass(frozen=True, slots=True)
class PlainText:
    """Sequences of text, every token of which counts; the same seed gives the same order."""

    sequences: Examples
    use: Mapping[str, TextUse]
    left_out: int = 0

    @classmethod
    def read(
        cls,
        parts: Sequence[Part],
        tokenizer: Any,
        *,
        length: int,
        count: int | None,
        chat_template: ChatTemplate,
        seed: int,
    ) -> PlainText:
        """Read, tokenise and cut the text of every part.

        :param count: sequences to take of all; all if None
        :raises PruneError: as `load_domains`
        """
        domains = load_domains(
            parts, tokenizer, length=length, chat_template=chat_template, seed=seed
        )
        have = sum(len(domain.token_ids) for domain in domains)
        tokens = length * min(count or have, have)
        return cls(packed(domains, tokens=tokens, seed=seed), uses_of(domains))

    @property
    def count(self) -> int:
        """Sequences in all."""
        return len(self.sequences.input_ids)

    @property
    def identity(self) -> tuple[DataIdentity, ...]:
        """Name each domain's sequences by their content."""
        return self.sequences.identity

    def examples(self, tokenizer: Any, *, length: int, seed: int) -> Examples:
        """Return what is trained on."""
        return self.sequences
