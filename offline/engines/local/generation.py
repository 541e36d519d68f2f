"""Generation for a batch of prompts with a live transformers model.

Prompts are padded on their left, where a mask keeps them out of sight, and rows leave the batch as
soon as they are done.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import (
    DynamicCache,
    LogitsProcessorList,
    MinPLogitsWarper,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from offline.engines.decoding import Decoding
from offline.engines.encoding import Prompt


@dataclass(frozen=True, slots=True)
class Answer:
    """What was generated, without what ended it; ``num_tokens`` went through the model."""

    text: str
    num_tokens: int


@dataclass(slots=True)
class _Row:
    """A prompt while it is being continued."""

    place: int
    prompt: Prompt
    new: list[int] = field(default_factory=list)
    sampler: _Sampler | None = None

    def __post_init__(self) -> None:
        if self.prompt.seed is not None:
            self.sampler = _Sampler(self.prompt.decoding, self.prompt.seed)

    def add(self, token: int, tokenizer: Any, ends: Collection[int]) -> Answer | None:
        """Take the next token; return the answer if it is complete."""
        self.new.append(token)
        ended = token in ends
        over = ended or len(self.new) >= self.prompt.max_tokens
        stops = self.prompt.decoding.engine_stops
        if not over and not stops:
            return None
        thinks = self.prompt.decoding.think_end is not None  # what ends that may be special
        new = self.new[:-1] if ended else self.new
        text = tokenizer.decode(new, skip_special_tokens=not thinks)
        found = [at for stop in stops if (at := text.find(stop)) >= 0]
        if not (over or found):
            return None
        # The last new token was chosen but never fed.
        return Answer(text[: min(found, default=None)], len(self.prompt.ids) + len(self.new) - 1)


class _Sampler:
    """Draws tokens, the same ones for the same logits, whatever device or batch they come from."""

    def __init__(self, decoding: Decoding, seed: int) -> None:
        self._generator = torch.Generator().manual_seed(seed)
        warmth = TemperatureLogitsWarper(decoding.temperature)
        self._warpers: Any = LogitsProcessorList([warmth])
        if decoding.top_k > 0:
            self._warpers.append(TopKLogitsWarper(decoding.top_k))
        if decoding.top_p < 1:
            self._warpers.append(TopPLogitsWarper(decoding.top_p))
        if decoding.min_p > 0:
            self._warpers.append(MinPLogitsWarper(decoding.min_p))

    def draw(self, logits: torch.Tensor) -> int:
        """Return a token by its logits [V]."""
        warped = self._warpers(None, logits.float().cpu()[None])
        drawn = torch.multinomial(warped.softmax(dim=-1), 1, generator=self._generator)
        return int(drawn)


def generate(
    model: Any,
    prompts: Sequence[Prompt],
    tokenizer: Any,
    tokens_per_batch: int,
    ends: Collection[int],
) -> list[Answer]:
    """Return what the model continues each prompt with.

    :param tokens_per_batch: prompt tokens, with padding, that are computed at once
    :param ends: tokens after which nothing comes
    """
    answers: dict[int, Answer] = {}
    for rows in _batched(prompts, tokens_per_batch):
        answers |= _run(model, rows, tokenizer, ends)
    return [answers[place] for place in range(len(prompts))]


def end_tokens(model: Any, tokenizer: Any) -> frozenset[int]:
    """Return the tokens that end an answer: a chat model's turns may end before its texts do."""
    own = getattr(model.generation_config, "eos_token_id", None)
    more = own if isinstance(own, list) else [own]
    return frozenset(int(i) for i in (tokenizer.eos_token_id, *more) if i is not None)


def _batched(prompts: Sequence[Prompt], tokens_per_batch: int) -> Iterator[list[_Row]]:
    """Yield prompts of about the same length together, longest first."""
    rows = [_Row(place, prompt) for place, prompt in enumerate(prompts)]
    batch: list[_Row] = []
    for row in sorted(rows, key=lambda row: -len(row.prompt.ids)):
        if batch and (len(batch) + 1) * len(batch[0].prompt.ids) > tokens_per_batch:
            yield batch
            batch = []
        batch.append(row)
    if batch:
        yield batch


@torch.inference_mode()
def _run(model: Any, rows: list[_Row], tokenizer: Any, ends: Collection[int]) -> dict[int, Answer]:
    """Continue all rows step by step; return place -> answer."""
    cache = DynamicCache(config=model.config)
    ids, real = _left_padded([row.prompt.ids for row in rows], model.device)
    positions = (real.cumsum(1) - 1).clamp_min(0)
    answers: dict[int, Answer] = {}
    while True:
        output = model(
            input_ids=ids,
            position_ids=positions,
            attention_mask=real,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        )
        chosen = _chosen(rows, output.logits[:, -1])
        ended = [
            row.add(token, tokenizer, ends)
            for row, token in zip(rows, chosen.tolist(), strict=True)
        ]
        answers |= {row.place: end for row, end in zip(rows, ended, strict=True) if end}
        # On the host, as layers of the cache may be on several devices.
        keep = torch.tensor([i for i, end in enumerate(ended) if end is None], dtype=torch.long)
        if not len(keep):
            return answers
        if len(keep) < len(rows):
            cache.batch_select_indices(keep)
            rows = [rows[i] for i in keep.tolist()]
        ids, positions = chosen[keep, None], positions[keep, -1:] + 1
        real = torch.cat([real[keep], real.new_ones(len(keep), 1)], dim=1)


def _chosen(rows: Sequence[_Row], logits: torch.Tensor) -> torch.Tensor:
    """Return the next token of each row [B] by the logits [B, V]."""
    chosen = logits.argmax(dim=-1)
    for number, row in enumerate(rows):
        if row.sampler is not None:
            chosen[number] = row.sampler.draw(logits[number])
    return chosen


def _left_padded(
    prompts: Sequence[tuple[int, ...]], device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return token ids [B, L] with zeros before them and where they are real [B, L] bool."""
    length = max(map(len, prompts))
    ids = torch.tensor([(0,) * (length - len(p)) + p for p in prompts], device=device)
    begin = torch.tensor([length - len(p) for p in prompts], device=device)
    return ids, torch.arange(length, device=device)[None] >= begin[:, None]
