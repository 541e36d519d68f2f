"""The forward passes of vLLM's model runner, seen from inside its worker."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

NOTE = "moe_note"  # key of a request's `SamplingParams.extra_args`
# `observe_steps` reads the first of vLLM's two model runners.
LIVE_ENVIRONMENT = {"VLLM_USE_V2_MODEL_RUNNER": "0"}


@dataclass(frozen=True, slots=True)
class PromptRows:
    """Those rows of a step's hidden states that belong to the prompt of one request.

    Row ``offset + i`` is prompt position ``start + i``, for i below ``count``.
    """

    note: Any  # what the request's `SamplingParams.extra_args` say under NOTE
    start: int
    count: int
    offset: int
    prompt_length: int


def observe_steps(
    model_runner: Any, observe: Callable[[list[PromptRows], torch.Tensor], None]
) -> None:
    """Call ``observe`` after each forward pass with the noted prompts and hidden states [T, D].

    T counts real tokens only. vLLM asks for the log-probabilities of prompts at just this place:
    hidden states are final, the batch is still that of the step, logits may be computed.
    """
    original = model_runner._get_prompt_logprobs_dict

    def observed(hidden: torch.Tensor, scheduled: dict[str, int]) -> Any:
        rows = [r for r in (_rows(model_runner, *item) for item in scheduled.items()) if r]
        if rows:
            observe(rows, hidden)
        return original(hidden, scheduled)

    model_runner._get_prompt_logprobs_dict = observed


def announce_steps(
    model_runner: Any, announce: Callable[[list[PromptRows], torch.Tensor], None]
) -> None:
    """Call ``announce`` before each forward pass with the noted prompts and the token ids [T].

    T counts real tokens only; a pass without any (of warming up) is announced with none.
    """
    original = model_runner._model_forward

    def announced(*arguments: Any, **named: Any) -> Any:
        batch = model_runner.input_batch
        edges = model_runner.query_start_loc.np[: batch.num_reqs + 1].tolist()
        counts = (end - begin for begin, end in itertools.pairwise(edges))
        scheduled = zip(batch.req_ids, counts, strict=True)
        rows = [row for row in (_rows(model_runner, *item) for item in scheduled) if row]
        total = edges[-1] if rows else 0
        announce(rows, model_runner.input_ids.gpu[:total])
        return original(*arguments, **named)

    model_runner._model_forward = announced


def _rows(model_runner: Any, request_id: str, scheduled: int) -> PromptRows | None:
    request = model_runner.requests[request_id]
    extra = request.sampling_params.extra_args if request.sampling_params else None
    note = (extra or {}).get(NOTE)
    length = len(request.prompt_token_ids or ())
    start = request.num_computed_tokens
    count = min(scheduled, length - start)
    if note is None or count <= 0:
        return None
    index = model_runner.input_batch.req_id_to_index[request_id]
    offset = int(model_runner.query_start_loc.np[index])
    return PromptRows(note, start, count, offset, length)
