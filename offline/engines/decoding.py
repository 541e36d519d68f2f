"""How an answer is generated: an lm-eval request's options, the same for every engine."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from lm_eval.models.utils import normalize_gen_kwargs

from offline.tasks.generation_options import check_options
from offline.tasks.prompting import THINK_END

_NEW_TOKENS = 256  # of a task that sets no limit, as in lm-evaluation-harness


@dataclass(frozen=True, slots=True)
class Decoding:
    """Options of one generation.

    ``temperature`` 0 is greedy, ``top_k`` 0 is all tokens. ``think_end`` is the text that ends a
    model's thinking: only what comes after it is the answer.
    """

    stops: tuple[str, ...] = ()
    max_tokens: int = _NEW_TOKENS
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    seed: int = 0
    think_end: str | None = None

    @classmethod
    def of(cls, options: Mapping[str, Any]) -> Decoding:
        """Read what lm-eval puts beside a context; names and defaults are lm-eval's.

        :raises PruneError: naming an option that no engine honours, or a value that is none
        """
        given = {name: value for name, value in options.items() if name != THINK_END}
        check_options(given)
        found: dict[str, Any] = normalize_gen_kwargs(dict(given), _NEW_TOKENS)
        greedy = cls(
            stops=tuple(stop for stop in found["until"] if stop),
            max_tokens=found["max_gen_toks"],
            think_end=options.get(THINK_END),
        )
        # Sampling is asked for by a temperature or by `do_sample`, whose temperature is 1.
        temperature = float(found.get("temperature", 1.0)) if found["do_sample"] else 0.0
        if temperature == 0:
            return greedy
        return replace(
            greedy,
            temperature=temperature,
            top_p=float(found.get("top_p", 1.0)),
            top_k=max(found.get("top_k", 0), 0),
            min_p=float(found.get("min_p", 0.0)),
            seed=found.get("seed", 0),
        )

    @property
    def engine_stops(self) -> tuple[str, ...]:
        """Return the strings that end a generation: none while a model may be thinking."""
        return self.stops if self.think_end is None else ()

    def seed_of(self, ids: Sequence[int], occurrence: int) -> int:
        """Return a seed [31 bits] for one answer to a prompt, its own for every occurrence.

        With the same seed for all, the answers of a task that asks each item several times would
        be one answer.
        """
        words = repr((self.seed, occurrence, tuple(ids))).encode()
        return int.from_bytes(hashlib.blake2b(words, digest_size=4).digest()) >> 1

    def answer(self, text: str, specials: Sequence[str]) -> str | None:
        """Return what counts of a generated text: None if the thinking in it never ended.

        :param specials: tokens that are no part of an answer; the text of a model that thinks has
            them, for what ends its thinking may be one
        """
        if self.think_end is not None:
            _, found, text = text.rpartition(self.think_end)
            if not found:
                return None
            for special in specials:
                text = text.replace(special, "")
            text = text.lstrip()
        return text[: min((at for s in self.stops if (at := text.find(s)) >= 0), default=None)]
