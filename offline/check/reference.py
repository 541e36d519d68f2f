"""What `vmprune check` compares with: the base, or a plain checkpoint itself, under a routing map.

transformers is another implementation, and computes a quantised model with dequantised weights.
vLLM's live engine is the same kernels with masks in place of what was built: for models that only
vLLM can hold.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from vllm_moe_prune.routing_map import RoutingMap

if TYPE_CHECKING:
    from offline.engines.live.engine import VllmEngine
    from offline.engines.local.transformers import TransformersEngine

_LENGTH = 512  # tokens of a prompt and its answer, at most


class Reference(Protocol):
    """A model that scores what the server answered."""

    @property
    def name(self) -> str:
        """What computes it."""

    def apply(self, routing_map: RoutingMap | None) -> None:
        """Behave as a map says, or as the base."""

    def token_scores(
        self, prompt: Sequence[int], tokens: Sequence[int]
    ) -> list[tuple[float, bool]]:
        """Return the log-probability of each token after a prompt and those before it, and whether
        it is the likeliest."""

    def greedy(self, prompts: Sequence[Sequence[int]], count: int) -> list[Sequence[int]]:
        """Continue each prompt with the likeliest tokens."""

    def close(self) -> None:
        """Free what it holds."""


class LocalReference:
    """transformers, in this process."""

    name = "transformers"

    def __init__(self, engine: TransformersEngine) -> None:
        self._engine = engine

    def apply(self, routing_map: RoutingMap | None) -> None:
        """Behave as a map says, or as the base."""
        self._engine.apply(routing_map)

    def token_scores(
        self, prompt: Sequence[int], tokens: Sequence[int]
    ) -> list[tuple[float, bool]]:
        """Score tokens in one pass."""
        logits = self._engine.logits([[*prompt, *tokens]])[0, len(prompt) - 1 : -1]
        scores = logits.log_softmax(dim=-1)
        return [
            (float(scores[step, token]), int(scores[step].argmax()) == token)
            for step, token in enumerate(tokens)
        ]

    def greedy(self, prompts: Sequence[Sequence[int]], count: int) -> list[Sequence[int]]:
        """Continue each prompt with the likeliest tokens."""
        return [answer.token_ids for answer in self._engine.greedy(prompts, count)]

    def close(self) -> None:
        """Nothing to do: it goes with this process."""


class LiveReference:
    """vLLM, with the base loaded once."""

    name = "vLLM's live engine"

    def __init__(self, engine: VllmEngine) -> None:
        self._engine = engine

    @classmethod
    def open(cls, model: Path, *, dtype: Any, tensor_parallel: int) -> LiveReference:
        """Start vLLM on the base.

        :raises PruneError: if it does not start, or cannot try maps of the model
        """
        from offline.engines.live.engine import VllmEngine

        return cls(
            VllmEngine(
                model, dtype=dtype, max_model_len=_LENGTH, tensor_parallel_size=tensor_parallel
            )
        )

    def apply(self, routing_map: RoutingMap | None) -> None:
        """Behave as a map says, or as the base."""
        self._engine.apply(routing_map)

    def token_scores(
        self, prompt: Sequence[int], tokens: Sequence[int]
    ) -> list[tuple[float, bool]]:
        """Score each token as a continuation of all before it."""
        text = [*prompt, *tokens]
        begins = range(len(prompt), len(text))
        return self._engine.score_apart([(text[:at], [text[at]]) for at in begins])

    def greedy(self, prompts: Sequence[Sequence[int]], count: int) -> list[Sequence[int]]:
        """Continue each prompt with the likeliest tokens."""
        return self._engine.greedy(prompts, count)

    def close(self) -> None:
        """End vLLM's processes."""
        self._engine.close()
