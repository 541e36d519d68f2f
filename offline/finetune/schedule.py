"""What every process of a finetune must agree on: order, batches, and learning rate. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from offline.finetune.settings import FinetuneSettings
from vllm_moe_prune.errors import PruneError

Indices = NDArray[np.int64]


def shuffled(count: int, wanted: int, seed: int) -> Indices:
    """Return ``wanted`` indices below ``count``: random orders of all, one behind the other."""
    rng = np.random.default_rng(seed)
    return np.concatenate([rng.permutation(count) for _ in range(-(-wanted // count))])[:wanted]


def batches(count: int, settings: FinetuneSettings, seed: int) -> list[Indices]:
    """Return the examples of each optimizer step; the last step has what is left.

    :param count: N, how many examples there are
    """
    order = shuffled(count, max(round(count * settings.epochs), 1), seed)
    return [order[at : at + settings.batch] for at in range(0, len(order), settings.batch)]


def micro_batch(settings: FinetuneSettings, processes: int) -> int:
    """Return how many sequences one process has in memory at once.

    :raises PruneError: if the batch cannot be shared out evenly
    """
    each, left = divmod(settings.batch, processes)
    if left:
        raise PruneError(
            f"a batch of {settings.batch} sequences cannot be shared by {processes} processes",
            hint=f"--batch {max(each, 1) * processes}",
        )
    micro = settings.micro_batch or each
    if each % micro:
        raise PruneError(
            f"a micro-batch of {micro} does not divide the {each} sequences that each of "
            f"{processes} process{'es' * (processes > 1)} has of a batch of {settings.batch}",
            hint=f"--micro-batch {math.gcd(micro, each)}",
        )
    return micro


def shares(batch: Indices, rank: int, processes: int, micro: int) -> Iterator[Indices]:
    """Yield the micro-batches of one process; each process has as many.

    An index -1 is a filler without any loss, where the last batch is too small for all.
    """
    each = -(-len(batch) // processes)
    filled = np.concatenate([batch, np.full(each * processes - len(batch), -1)])
    own = filled[rank * each : (rank + 1) * each]
    for at in range(0, each, micro):
        yield own[at : at + micro]


def learning_rate(step: int, steps: int, settings: FinetuneSettings) -> float:
    """Return the rate of step 0 <= ``step`` < ``steps``: up in a line, down in half a cosine."""
    warming = min(int(settings.warmup * steps), steps - 1)
    if step < warming:
        return settings.learning_rate * (step + 1) / (warming + 1)
    progress = (step - warming) / (steps - warming)
    return settings.learning_rate * 0.5 * (1 + math.cos(math.pi * progress))
