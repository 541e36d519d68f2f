"""Greedy generation of a batch of prompts with a live transformers model.

Prompts are padded on their left, where a mask keeps them out of sight, and rows leave the batch as
soon as they are done.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import DynamicCache

from offline.engines.encoding import Encoder

_DEFAULT_TOKENS = 256  # lm-eval's, where a task names no `max_gen_toks`


@dataclass(frozen=True, slots=True)
class Prompt:
    """Token ids to continue until a stop string, an end token or ``max_tokens`` new tokens."""

    ids: tuple[int, ...]
    stops: tuple[str, ...]
    max_tokens: int
    end: int

    @classmethod
    def of(cls, encoder: Encoder, context: str, settings: Mapping[str, Any]) -> Prompt:
        """Make a prompt from an lm-eval request; a context that is too long loses its beginning."""
        until = settings.get("until") or ()
        stops = (until,) if isinstance(until, str) else tuple(until)
        room = min(int(settings.get("max_gen_toks", _DEFAULT_TOKENS)), encoder.max_length - 1)
        ids = encoder.encode_text(context, room)
        return cls(tuple(ids), stops, room, encoder.eot_token_id)


@dataclass(frozen=True, slots=True)
class Answer:
    """What was generated, without the stop string; ``num_tokens`` went through the model."""

    text: str
    num_tokens: int


@dataclass(slots=True)
class _Row:
    """A prompt while it is being continued."""

    place: int
    prompt: Prompt
    new: list[int] = field(default_factory=list)

    def add(self, token: int, tokenizer: Any) -> Answer | None:
        """Take the next token; return the answer if it is complete."""
        self.new.append(token)
        ended = token == self.prompt.end
        text = tokenizer.decode(self.new[:-1] if ended else self.new, skip_special_tokens=True)
        found = [at for stop in self.prompt.stops if (at := text.find(stop)) >= 0]
        if not (ended or found or len(self.new) >= self.prompt.max_tokens):
            return None
        # The last new token was chosen but never fed.
        return Answer(text[: min(found, default=None)], len(self.prompt.ids) + len(self.new) - 1)


def generate(
    model: Any, prompts: Sequence[Prompt], tokenizer: Any, tokens_per_batch: int
) -> list[Answer]:
    """Return the greedy answer to each prompt.

    :param tokens_per_batch: prompt tokens, with padding, that are computed at once
    """
    answers: dict[int, Answer] = {}
    for rows in _batched(prompts, tokens_per_batch):
        answers |= _run(model, rows, tokenizer)
    return [answers[place] for place in range(len(prompts))]


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
def _run(model: Any, rows: list[_Row], tokenizer: Any) -> dict[int, Answer]:
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
        chosen = output.logits[:, -1].argmax(dim=-1)  # [B]
        ended = [
            row.add(token, tokenizer) for row, token in zip(rows, chosen.tolist(), strict=True)
        ]
        answers |= {row.place: end for row, end in zip(rows, ended, strict=True) if end}
        keep = torch.tensor([i for i, end in enumerate(ended) if end is None], device=model.device)
        if not len(keep):
            return answers
        if len(keep) < len(rows):
            cache.batch_select_indices(keep)
            rows = [rows[i] for i in keep.tolist()]
        ids, positions = chosen[keep, None], positions[keep, -1:] + 1
        real = torch.cat([real[keep], real.new_ones(len(keep), 1)], dim=1)


def _left_padded(
    prompts: Sequence[tuple[int, ...]], device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return token ids [B, L] with zeros before them and where they are real [B, L] bool."""
    length = max(map(len, prompts))
    ids = torch.tensor([(0,) * (length - len(p)) + p for p in prompts], device=device)
    begin = torch.tensor([length - len(p) for p in prompts], device=device)
    return ids, torch.arange(length, device=device)[None] >= begin[:, None]
