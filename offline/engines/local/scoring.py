"""An lm-evaluation-harness model on a live transformers model: log-likelihoods and generation."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import Any

import torch

from offline.engines.decoding import Decoding
from offline.engines.encoding import Encoder, Pair, Prompt, TokenPair
from offline.engines.local.attention_reach import attention_reach
from offline.engines.local.generation import end_tokens, generate
from offline.engines.local.packing import BLOCK, ROW_TOKENS, Batch, Question, build, group, pack
from offline.engines.local.reading import read
from offline.engines.reading import Ids, Reading
from vllm_moe_prune.errors import PruneError

_CHUNK = 256  # positions whose logits are in float32 at the same time
_REMEMBERED = 256  # blocks of requests kept tokenised and packed


class PackedLM(Encoder):
    """Scores continuations with each context computed once (see packing.py), and generates.

    ``tokens`` counts the tokens that went through the model, without padding.

    :param tokens_per_batch: tokens of one forward pass, with padding
    :param max_length: of a sequence; longer contexts lose their beginning
    :param share_contexts: False gives every (context, continuation) a row of its own, as
        lm-evaluation-harness does: there to measure what sharing saves
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        *,
        tokens_per_batch: int,
        max_length: int,
        share_contexts: bool = True,
    ) -> None:
        super().__init__(tokenizer, max_length)
        self.model, self.share_contexts = model, share_contexts
        self.tokens_per_batch = tokens_per_batch
        self._attention_reach = attention_reach(model.config)
        self._batches: dict[Hashable, list[Batch]] = {}

    def loglikelihood(
        self, requests: Sequence[Any], disable_tqdm: bool = True
    ) -> list[tuple[float, bool]]:
        """Return (log-likelihood in nats, whether greedy decoding gives it) of each request."""
        results: list[tuple[float, bool]] = []
        for block in blocks(requests):
            results += self._score(self.batches([request.args for request in block]))
        return results

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = True) -> list[str]:
        """Return the continuation of each request, up to its stop strings or length."""
        texts: list[str] = []
        ends = end_tokens(self.model, self.tokenizer)
        for block in blocks(requests):
            prompts = self.prompts(block)
            answers = generate(self.model, prompts, self.tokenizer, self.tokens_per_batch, ends)
            self.tokens += sum(answer.num_tokens for answer in answers)
            texts += [self.answer(p, a.text) for p, a in zip(prompts, answers, strict=True)]
        return texts

    def decode(self, prompts: Sequence[Sequence[int]], count: int) -> int:
        """Continue prompts by ``count`` tokens (see `Encoder.decode`)."""
        given = [Prompt(tuple(ids), Decoding(max_tokens=count), count) for ids in prompts]
        answers = generate(self.model, given, self.tokenizer, self.tokens_per_batch, ends=())
        fed = sum(len(ids) - 1 for ids in prompts)  # the last new token of each is not
        return sum(answer.num_tokens for answer in answers) - fed

    def loglikelihood_rolling(
        self, requests: Sequence[Any], disable_tqdm: bool = True
    ) -> list[float]:
        """Return the log-likelihood in nats of each request's whole text."""
        found: list[float] = []
        for block in blocks(requests):
            found += super().loglikelihood_rolling(block)
        return found

    def score_apart(self, pairs: Sequence[TokenPair]) -> list[tuple[float, bool]]:
        """Score (context, continuation) pairs, each in a row of its own."""
        return self._score(self._apart(pairs))

    def _apart(self, pairs: Sequence[TokenPair]) -> list[Batch]:
        return self._rows(group(pairs, self.max_length, share=False), share=False)

    def readings(
        self, texts: Sequence[Sequence[int]], count: int = 0, wanted: Sequence[Ids] | None = None
    ) -> list[Reading]:
        """Read texts, each in a row of its own (see `Encoder.readings`)."""
        found: dict[int, Reading] = {}
        for batch in self._apart([([text[0]], list(text[1:])) for text in texts]):
            logits, at = self.forward(batch), 0
            for place, length in zip(batch.places, batch.lengths, strict=True):
                part = slice(at, at := at + length)
                asked = None if wanted is None else torch.from_numpy(wanted[place])
                found[place] = read(logits, batch.source[part], batch.target[part], count, asked)
        return [found[place] for place in range(len(texts))]

    def batches(self, pairs: Sequence[Pair]) -> list[Batch]:
        """Return the packed batches of (context, continuation) texts; made once for each set."""
        return self._remembered(tuple(pairs), lambda: self._packed(self.encode_pairs(pairs)))

    def passage_batches(self, texts: Sequence[str]) -> list[Batch]:
        """Return the packed batches of plain texts: each token but the first is a target.

        ``places`` are those of the texts.

        :raises PruneError: if a text has fewer than two tokens
        """
        return self._remembered((None, *texts), lambda: self._passages(texts))

    def _remembered(self, key: Hashable, make: Callable[[], list[Batch]]) -> list[Batch]:
        if key not in self._batches:
            if len(self._batches) >= _REMEMBERED:
                del self._batches[next(iter(self._batches))]
            self._batches[key] = make()
        return self._batches[key]

    def _passages(self, texts: Sequence[str]) -> list[Batch]:
        questions = []
        for place, text in enumerate(texts):
            first, *rest = self.encode_text(text)
            if not rest:
                raise PruneError(f"the text {text[:40]!r} is a single token: nothing is predicted")
            questions.append(Question((first,), (tuple(rest),), (place,)))
        return self._rows(questions, share=self._may_share(questions))

    def _loglikelihood_tokens(
        self, requests: Sequence[tuple[Pair, list[int], list[int]]], **_: Any
    ) -> list[tuple[float, bool]]:
        return self._score(self._packed([(request[1], request[2]) for request in requests]))

    def _packed(self, pairs: list[TokenPair]) -> list[Batch]:
        questions = group(pairs, self.max_length)
        share = self.share_contexts and self._may_share(questions)
        if not share:
            questions = group(pairs, self.max_length, share=False)
        return self._rows(questions, share=share)

    def _may_share(self, questions: Sequence[Question]) -> bool:
        """Whether a mask can keep apart what is in one row: it takes the place of the model's."""
        return max((question.length for question in questions), default=0) <= self._attention_reach

    def _rows(self, questions: Sequence[Question], *, share: bool) -> list[Batch]:
        rows = pack(questions, self.tokens_per_batch, ROW_TOKENS if share else 0)
        return [build(batch, self.model.device) for batch in rows]

    def _score(self, batches: list[Batch]) -> list[tuple[float, bool]]:
        results: dict[int, tuple[float, bool]] = {}
        for batch in batches:
            log_probs, greedy = target_log_probs(batch, self.forward(batch))
            at = 0
            for place, length in zip(batch.places, batch.lengths, strict=True):
                part = slice(at, at + length)
                results[place] = (float(log_probs[part].sum()), bool(greedy[part].all()))
                at += length
        return [results[place] for place in range(len(results))]

    def forward(self, batch: Batch) -> torch.Tensor:
        """Run one batch; return the logits [K, V] at the places ``batch.keep``."""
        self.tokens += batch.num_tokens

        def select(_: Any, hidden: tuple[torch.Tensor]) -> torch.Tensor:
            rows = hidden[0].flatten(0, 1)
            return rows[batch.keep.to(rows.device)][None]  # [B, L, D] -> [1, K, D]

        # The vocabulary is large: multiply only where a target is predicted.
        hook = self.model.get_output_embeddings().register_forward_pre_hook(select)
        try:
            with torch.inference_mode():
                output = self.model(
                    input_ids=batch.input_ids,
                    position_ids=batch.position_ids,
                    attention_mask=batch.mask,
                    use_cache=False,
                )
        finally:
            hook.remove()
        logits: torch.Tensor = output.logits[0]
        return logits


def blocks(requests: Sequence[Any]) -> Iterator[list[Any]]:
    """Yield lm-eval's requests in the blocks of items that are packed together."""
    for _, block in itertools.groupby(requests, key=lambda request: (request.doc_id or 0) // BLOCK):
        yield list(block)


def target_log_probs(batch: Batch, logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the log-probability [P] in float64 and whether it is the greatest [P], per target.

    :param logits: [K, V]
    """
    chunks = torch.split(logits, _CHUNK)
    normaliser = torch.cat([chunk.float().logsumexp(dim=-1) for chunk in chunks]).double()
    greatest = logits.amax(dim=-1)  # many times faster than argmax in bfloat16
    chosen = logits[batch.source, batch.target]
    log_probs = chosen.double() - normaliser[batch.source]
    return log_probs.cpu(), (chosen == greatest[batch.source]).cpu()
