"""``vllm_moe_expert_tokens_total``: how many tokens each expert got, for Prometheus.

The counts are in the workers, the metrics in the API server, and the engine between the two may be
another process: every few seconds all workers are asked, between two steps. A scrape shows what
the last answer said.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from vllm_moe_prune.vllm_compat.expert_counts import METHOD

logger = logging.getLogger(f"vllm.{__name__}")

NAME = "vllm_moe_expert_tokens"  # Prometheus adds _total
SECONDS = 5.0  # between two questions


class ExpertTokens:
    """A collector for Prometheus; ``counts`` are decoder layer -> tokens of each expert."""

    def __init__(self) -> None:
        self.counts: dict[int, Sequence[int]] = {}

    @classmethod
    def registered(cls) -> ExpertTokens:
        """Make one that vLLM's ``/metrics`` shows."""
        from prometheus_client import REGISTRY

        made = cls()
        REGISTRY.register(made)
        return made

    def describe(self) -> Iterable[Any]:
        """Name no metrics when it is registered, before there are counts."""
        return ()

    def collect(self) -> Iterator[Any]:
        """Yield the counter, with a sample for every expert of every layer."""
        from prometheus_client.core import CounterMetricFamily

        text = "Tokens that the router gave to an expert, by decoder layer and the expert's number."
        family = CounterMetricFamily(NAME, text, labels=("layer", "expert"))
        for layer, tokens in sorted(self.counts.items()):
            for expert, count in enumerate(tokens):
                family.add_metric((str(layer), str(expert)), count)
        yield family

    def take(self, answers: Iterable[Iterable[tuple[int, Sequence[int]]]]) -> None:
        """Take what the workers say: pipeline stages have other layers, ranks the same tokens."""
        for worker in answers:
            for layer, tokens in worker:
                self.counts[layer] = tokens


async def keep_counting(engine: Any, tokens: ExpertTokens) -> None:
    """Ask an engine's workers for their counts until this task is cancelled or the engine ends."""
    try:
        await _ask_again(engine, tokens)
    except Exception as error:  # an engine that ends does so in many ways
        logger.warning("%s is not kept up any longer: %r", NAME, error)


async def _ask_again(engine: Any, tokens: ExpertTokens) -> None:
    # The first answer is of the warm-up's tokens, and sets the counts to zero.
    await engine.collective_rpc(METHOD, args=(False,))
    while not engine.errored:
        tokens.take(await engine.collective_rpc(METHOD))
        await asyncio.sleep(SECONDS)
