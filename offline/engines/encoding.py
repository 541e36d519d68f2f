"""How texts become tokens: the same for every engine, so that engines differ in arithmetic only."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from lm_eval.api.model import TemplateLM
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from offline.data.chat_template import render
from offline.engines.decoding import Decoding
from offline.engines.reading import Ids, Reading
from vllm_moe_prune.errors import PruneError

Pair = tuple[str, str]
TokenPair = tuple[list[int], list[int]]


@dataclass(frozen=True, slots=True)
class Prompt:
    """Token ids to continue with up to ``max_tokens`` new ones.

    ``seed`` is that of what is sampled, and None where decoding is greedy.
    """

    ids: tuple[int, ...]
    decoding: Decoding
    max_tokens: int
    seed: int | None = None


class Encoder(TemplateLM):  # type: ignore[misc]  # lm-eval is untyped
    """The half of an lm-eval model that every engine shares.

    A subclass scores and generates. ``tokens`` counts the tokens that its model had to compute,
    without padding, ``unfinished`` the generations that never ended their thinking.

    :param tokenizer: of transformers
    :param max_length: tokens that the model can look at; what is longer loses its beginning
    """

    def __init__(self, tokenizer: Any, max_length: int) -> None:
        super().__init__()
        self.tokenizer, self.max_length = tokenizer, max_length
        self.tokens = self.unfinished = 0

    @property
    def eot_token_id(self) -> int:
        """Token that ends a text."""
        return int(self.tokenizer.eos_token_id)

    @property
    def prefix_token_id(self) -> int:
        """Token that stands before a text without context."""
        bos = self.tokenizer.bos_token_id
        return self.eot_token_id if bos is None else int(bos)

    @property
    def tokenizer_name(self) -> str:
        """Name by which lm-eval tells apart what different templates rendered."""
        return str(self.tokenizer.name_or_path).replace("/", "__")

    def apply_chat_template(
        self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
    ) -> str:
        """Return a conversation as the tokenizer's chat template writes it.

        :param add_generation_prompt: False leaves the last message open, to be continued
        :raises PruneError: if there is no template, or it refuses the conversation
        """
        return render(self.tokenizer, chat_history, add_generation_prompt)

    def tok_encode(
        self, string: str, add_special_tokens: bool | None = None, **_: Any
    ) -> list[int]:
        """Return token ids, with the tokenizer's own special tokens unless told otherwise.

        A text that begins with the first of them, as a chat template writes it, gets no second.
        """
        if add_special_tokens is None:
            add_special_tokens = not string.startswith(self.tokenizer.decode(self.prefix_token_id))
        ids: list[int] = self.tokenizer.encode(string, add_special_tokens=add_special_tokens)
        return ids

    def encode_pairs(self, pairs: Sequence[Pair]) -> list[TokenPair]:
        """Return (context, continuation) as token ids, neither empty, not yet cut to length."""
        return [self._encode(*pair) for pair in pairs]

    def _encode(self, context: str, continuation: str) -> TokenPair:
        if context:
            pair: TokenPair = self._encode_pair(context, continuation)
            return pair
        ids = self.tok_encode(continuation, add_special_tokens=False)
        begun = len(ids) > 1 and ids[0] == self.prefix_token_id
        return (ids[:1], ids[1:]) if begun else ([self.prefix_token_id], ids)

    def encode_text(self, text: str, room: int = 0) -> list[int]:
        """Return the last tokens of a text that fit, at least one, leaving ``room`` for more."""
        ids = self.tok_encode(text) or [self.prefix_token_id]
        return ids[-max(self.max_length - room, 1) :]

    def prompts(self, requests: Iterable[Any]) -> list[Prompt]:
        """Return what lm-eval's requests ask to be continued; long contexts lose their beginning.

        :raises PruneError: naming a generation option that is not offered; for an answer so long
            that nothing is left for the prompt
        """
        seen: Counter[Any] = Counter()
        found = []
        for request in requests:
            context, options = request.args
            decoding = Decoding.of(options)
            room = decoding.max_tokens
            self._check_answer(room)
            ids = tuple(self.encode_text(context, room))
            key = (request.doc_id, ids)
            seed = decoding.seed_of(ids, seen[key]) if decoding.temperature > 0 else None
            found.append(Prompt(ids, decoding, room, seed))
            seen[key] += 1
        return found

    def _check_answer(self, tokens: int) -> None:
        if tokens >= self.max_length:
            raise PruneError(
                f"an answer of {tokens} tokens leaves none of {self.max_length} for its prompt",
                hint="give a smaller --max-gen-tokens",
            )

    def answer(self, prompt: Prompt, text: str) -> str:
        """Return what counts of a generated text, nothing if its thinking never ended."""
        found = prompt.decoding.answer(text, self.tokenizer.all_special_tokens)
        self.unfinished += found is None
        return found or ""

    def windows(self, text: str) -> list[TokenPair]:
        """Return the (context, continuation) token ids whose likelihoods make up a text's.

        They are lm-eval's: each token is a target once, seen after as many as fit.
        """
        return [
            make_disjoint_window(window)
            for window in get_rolling_token_windows(
                token_list=self.tok_encode(text),
                prefix_token=self.prefix_token_id,
                max_seq_len=self.max_length,
                context_len=1,
            )
        ]

    def loglikelihood_rolling(
        self, requests: Sequence[Any], disable_tqdm: bool = True
    ) -> list[float]:
        """Return the log-likelihood in nats of each request's whole text."""
        documents = [self.windows(*request.args) for request in requests]
        scores = iter(self.score_apart([pair for document in documents for pair in document]))
        return [sum(next(scores)[0] for _ in document) for document in documents]

    def score_apart(self, pairs: Sequence[TokenPair]) -> list[tuple[float, bool]]:
        """Score (context, continuation) pairs, each computed by itself."""
        raise NotImplementedError

    def decode(self, prompts: Sequence[Sequence[int]], count: int) -> int:
        """Continue prompts of token ids together by ``count`` tokens each, whatever these are, for
        measuring how long that takes; nothing of an earlier call is used.

        :returns: how many tokens were generated
        """
        raise NotImplementedError

    def readings(
        self, texts: Sequence[Sequence[int]], count: int = 0, wanted: Sequence[Ids] | None = None
    ) -> list[Reading]:
        """Read texts [L + 1] of token ids, the first of each given, each computed by itself.

        :param texts: of at least two tokens and at most ``max_length`` + 1
        :param count: how many of the likeliest tokens to list at each place
        :param wanted: for each text the tokens [L, K] to list instead
        """
        raise NotImplementedError
