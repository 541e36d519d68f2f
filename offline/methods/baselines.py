"""What a search has to beat: random maps, and keeping the experts that are used most."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence

import numpy as np

from offline.methods.space import Kept, Space


def random_kept(space: Space, rng: random.Random) -> dict[int, Kept]:
    """Keep a uniformly random set of experts in every layer (EEP, appendix A.2)."""
    return {
        layer: tuple(sorted(rng.sample(range(count), space.keep)))
        for layer, count in space.num_experts.items()
    }


def most_used(space: Space, usage: Mapping[int, Sequence[int]]) -> dict[int, Kept]:
    """Drop the experts that the fewest tokens were routed to (EEP's Frequency; `min-euf`).

    :param usage: decoder layer -> tokens routed to each expert, [E]; ties keep the lower id
    """
    return {
        layer: tuple(
            sorted(np.argsort(-np.asarray(usage[layer]), kind="stable")[: space.keep].tolist())
        )
        for layer in space.layers
    }
