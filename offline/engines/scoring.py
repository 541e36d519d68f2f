"""An lm-evaluation-harness model on a live transformers model, for log-likelihood tasks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from lm_eval.api.model import TemplateLM

from offline.engines.packing import Batch, build, group, pack

_CHUNK = 256  # positions whose logits are in float32 at the same time
_REMEMBERED = 8  # sets of requests kept tokenised and packed
Pair = tuple[str, str]


class PackedLM(TemplateLM):  # type: ignore[misc]  # lm-eval is untyped
    """Scores continuations with each context computed once (see packing.py).

    ``tokens`` counts the tokens that went through the model, without padding.
    """

    def __init__(
        self, model: Any, tokenizer: Any, *, tokens_per_batch: int, max_length: int
    ) -> None:
        super().__init__()
        self.model, self.tokenizer = model, tokenizer
        self.tokens_per_batch, self.max_length = tokens_per_batch, max_length
        self.tokens = 0
        self._batches: dict[tuple[Pair, ...], list[Batch]] = {}

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

    def loglikelihood(
        self, requests: Sequence[Any], disable_tqdm: bool = True
    ) -> list[tuple[float, bool]]:
        """Return (log-likelihood in nats, whether greedy decoding gives it) of each request."""
        return self._score(self.batches([request.args for request in requests]))

    def batches(self, pairs: Sequence[Pair]) -> list[Batch]:
        """Return the packed batches of (context, continuation) texts; made once for each set."""
        key = tuple(pairs)
        if key not in self._batches:
            if len(self._batches) >= _REMEMBERED:
                del self._batches[next(iter(self._batches))]
            self._batches[key] = self._packed([self._encode(*pair) for pair in key])
        return self._batches[key]

    def _loglikelihood_tokens(
        self, requests: Sequence[tuple[Pair, list[int], list[int]]], **_: Any
    ) -> list[tuple[float, bool]]:
        return self._score(self._packed([(request[1], request[2]) for request in requests]))

    def _packed(self, pairs: list[tuple[list[int], list[int]]]) -> list[Batch]:
        rows = pack(group(pairs, self.max_length), self.tokens_per_batch)
        return [build(batch, self.model.device) for batch in rows]

    def _encode(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        if context:
            pair: tuple[list[int], list[int]] = self._encode_pair(context, continuation)
            return pair
        return [self.prefix_token_id], self.tok_encode(continuation, add_special_tokens=False)

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
            return hidden[0].flatten(0, 1)[batch.keep][None]  # [B, L, D] -> [1, K, D]

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

    def loglikelihood_rolling(self, requests: Any, disable_tqdm: bool = False) -> list[float]:
        """Not offered: no task of this project asks for the likelihood of whole documents."""
        raise NotImplementedError

    def generate_until(self, requests: Any, disable_tqdm: bool = False) -> list[str]:
        """Not offered: tasks are scored by log-likelihood."""
        raise NotImplementedError


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
