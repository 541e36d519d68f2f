"""What a replica's engine is given."""

from __future__ import annotations

from typing import Any

import pytest

from offline.compress.engines import _replica
from offline.compress.recipe.reading import recipe_of
from offline.engines.ray.replica import Share

MODEL = {"model": "base", "keep": 4}


@pytest.mark.parametrize(
    ("settings", "gpus", "memory"),
    [
        ({"engine": "vllm"}, 1.0, None),
        ({"engine": "vllm"}, 0.0, None),
        ({"engine": "vllm"}, 0.5, 0.45),
        ({"engine": "vllm", "gpu_memory": 0.8}, 0.25, 0.2),
        ({"engine": "vllm", "gpu_memory": 0.8}, 2.0, 0.8),
        ({}, 0.5, None),
    ],
)
def test_replicas_on_one_gpu_divide_its_memory(
    settings: dict[str, Any], gpus: float, memory: float | None
) -> None:
    made: Any = lambda recipe: recipe.engine.gpu_memory  # noqa: E731
    found: Any = _replica(made, recipe_of({**MODEL, **settings}), Share(1, gpus))
    assert found == (None if memory is None else pytest.approx(memory))
