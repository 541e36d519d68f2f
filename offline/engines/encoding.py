"""How texts become tokens: the same for every engine, so that engines differ in arithmetic only."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lm_eval.api.model import TemplateLM

Pair = tuple[str, str]
TokenPair = tuple[list[int], list[int]]


class Encoder(TemplateLM):  # type: ignore[misc]  # lm-eval is untyped
    """The half of an lm-eval model that every engine shares.

    A subclass scores and generates. ``tokens`` counts the tokens that its model had to compute,
    without padding.

    :param tokenizer: of transformers
    :param max_length: tokens that the model can look at; what is longer loses its beginning
    """

    def __init__(self, tokenizer: Any, max_length: int) -> None:
        super().__init__()
        self.tokenizer, self.max_length = tokenizer, max_length
        self.tokens = 0

    @property
    def eot_token_id(self) -> int:
        """Token that ends a text."""
        return int(self.tokenizer.eos_token_id)

    @property
    def prefix_token_id(self) -> int:
        """Token that stands before a text without context."""
        bos = self.tokenizer.bos_token_id
        return self.eot_token_id if bos is None else int(bos)

    def tok_encode(
        self, string: str, add_special_tokens: bool | None = None, **_: Any
    ) -> list[int]:
        """Return token ids, with the tokenizer's own special tokens unless told otherwise."""
        special = add_special_tokens is not False
        ids: list[int] = self.tokenizer.encode(string, add_special_tokens=special)
        return ids

    def encode_pairs(self, pairs: Sequence[Pair]) -> list[TokenPair]:
        """Return (context, continuation) as token ids, neither empty, not yet cut to length."""
        return [self._encode(*pair) for pair in pairs]

    def _encode(self, context: str, continuation: str) -> TokenPair:
        if context:
            pair: TokenPair = self._encode_pair(context, continuation)
            return pair
        return [self.prefix_token_id], self.tok_encode(continuation, add_special_tokens=False)

    def encode_text(self, text: str, room: int = 0) -> list[int]:
        """Return the last tokens of a text that fit, at least one, leaving ``room`` for more."""
        ids = self.tok_encode(text) or [self.prefix_token_id]
        return ids[-max(self.max_length - room, 1) :]

    def loglikelihood_rolling(self, requests: Any, disable_tqdm: bool = False) -> list[float]:
        """Not offered: no task of this project asks for the likelihood of whole documents."""
        raise NotImplementedError
