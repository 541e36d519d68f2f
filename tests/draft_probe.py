"""What vLLM drafts, asked for in the process of `tests.vllm_probe`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.vllm_probe import Answer, _answer, ask


def drafted(
    model: Path, prompts: list[list[int]], *, steps: int, **arguments: Any
) -> tuple[list[Answer], list[list[int]]]:
    """Return the answers, and per prompt the tokens that were drafted, those of every step.

    :param arguments: those of `vllm.LLM`, with a ``speculative_config``
    """
    arguments |= {"async_scheduling": False}  # or nobody asks which tokens they are
    request = {"model": str(model), "arguments": arguments, "prompts": prompts, "steps": steps}
    found = ask(request | {"adapters": [], "drafted": True}, None, alone=False)
    return found[: len(prompts)], [tokens for tokens, _ in found[len(prompts) :]]


def drafting(drafted: bool, **request: Any) -> list[Any]:
    """Answer in that process: after the answers, per prompt the drafted tokens and nothing."""
    from vllm.v1.worker.gpu_worker import Worker  # what the CPU build's worker is, too

    take = Worker.take_draft_token_ids
    seen: dict[str, list[int]] = {}

    def note(self: Any) -> Any:
        found = take(self)
        if found is not None:
            for name, tokens in zip(found.req_ids, found.draft_token_ids, strict=True):
                seen.setdefault(name, []).extend(tokens)
        return found

    Worker.take_draft_token_ids = note  # type: ignore[method-assign]
    try:
        answers = _answer(**request)
    finally:
        Worker.take_draft_token_ids = take  # type: ignore[method-assign]
    return [*answers, *((tokens, []) for tokens in seen.values())]
