"""Tokens per second of maps, each in turn with the base: what the machine does hits both."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from offline.engines.opened import EngineName
from offline.fitness.text_quality import ReadingEngine
from offline.results.decode_speed import DecodeSpeed
from offline.results.estimate import bootstrap
from offline.sweep.settings import SpeedSettings
from offline.tasks.catalog import Task
from vllm_moe_prune.errors import PruneError
from vllm_moe_prune.routing_map import RoutingMap

PROMPT_TOKENS = 4  # of each prompt, at most: generating is what is measured


@dataclass(frozen=True, slots=True)
class SpeedBench:
    """Lets a loaded engine go on with pieces of a task's prompts, as any map of its base.

    :param name: of the engine
    """

    engine: ReadingEngine
    name: EngineName
    prompts: Sequence[Sequence[int]]
    settings: SpeedSettings

    @classmethod
    def of(
        cls, engine: ReadingEngine, name: EngineName, task: Task, settings: SpeedSettings
    ) -> SpeedBench:
        """Take a piece of each of the first search items, from places that differ: what all
        prompts have in common would be gone on with alike, by the same experts.

        :raises PruneError: if the task's data cannot be had, or the model is too short for answers
        """
        from offline.tasks.harness import texts_of  # with lm-eval, which an engine has loaded

        reader, batch = engine.reader, settings.speed_batch
        if settings.speed_tokens >= reader.max_length:
            raise PruneError(
                f"--speed-tokens {settings.speed_tokens}: the model takes at most "
                f"{reader.max_length} tokens",
                hint=f"--speed-tokens {max(reader.max_length - PROMPT_TOKENS, 1)} or less",
            )
        texts = [text for _, text in texts_of(task, "search", batch, lm=reader)]
        whole = [reader.encode_text(text, settings.speed_tokens) for text in texts]
        return cls(engine, name, _pieces(whole, batch), settings)

    def measure(self, routing_map: RoutingMap) -> DecodeSpeed:
        """Generate as the map and as the base, in turn; one of them stays applied."""
        rounds = self.settings.speed_rounds
        sides: tuple[RoutingMap | None, ...] = (None, routing_map)
        seconds = np.empty((rounds + 1, 2))
        for number in range(rounds + 1):
            for side in (0, 1) if number % 2 else (1, 0):  # neither always follows the other
                seconds[number, side] = self._seconds(sides[side])
        measured = seconds[1:]  # the first time warms up
        tokens = self.settings.speed_batch * self.settings.speed_tokens * rounds
        before, own = measured.sum(axis=0).tolist()
        return DecodeSpeed(
            engine=self.name,
            batch=self.settings.speed_batch,
            tokens=self.settings.speed_tokens,
            rounds=rounds,
            tokens_per_second=tokens / own,
            base_tokens_per_second=tokens / before,
            ratio=bootstrap(measured, lambda sums: sums[..., 0] / sums[..., 1]),
        )

    def _seconds(self, routing_map: RoutingMap | None) -> float:
        self.engine.apply(routing_map)
        begun = time.perf_counter()
        tokens = self.engine.reader.decode(self.prompts, self.settings.speed_tokens)
        seconds = time.perf_counter() - begun
        assert tokens == len(self.prompts) * self.settings.speed_tokens, tokens
        return seconds


def _pieces(texts: Sequence[Sequence[int]], count: int) -> list[Sequence[int]]:
    """Cut so many pieces out of texts in turn, each a bit later in its text than the last one."""
    found = []
    for number in range(count):
        ids = texts[number % len(texts)]
        at = len(ids) * number // count
        found.append(ids[at : at + PROMPT_TOKENS])
    return found
