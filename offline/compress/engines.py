"""Opening the engines that a recipe asks for: one in this process, or replicas through Ray."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial

from offline.compress.recipe.recipe import CompressRecipe
from offline.engines.base import Engine

EngineFactory = Callable[[CompressRecipe], Engine]


def load_engine(recipe: CompressRecipe) -> Engine:
    """Load the base model in the recipe's engine, on its device (not `auto`) and in its dtype.

    :raises PruneError: if the model or the engine cannot be had
    """
    settings = recipe.engine
    if settings.name == "vllm":
        from offline.engines.live.engine import VllmEngine

        return VllmEngine(
            recipe.base.model,
            dtype=settings.dtype,
            tensor_parallel_size=settings.tensor_parallel,
            seed=recipe.method.seed,
            answer_tokens=recipe.prompting.max_gen_tokens or 0,
        )
    from offline.engines.local.transformers import TransformersEngine

    return TransformersEngine(recipe.base.model, device=settings.device, dtype=settings.dtype)


@contextmanager
def open_engines(
    recipe: CompressRecipe, make_engine: EngineFactory = load_engine
) -> Iterator[Sequence[Engine]]:
    """Give the recipe's engines for the length of a block, all alike.

    :param make_engine: makes one; it must pickle where there are replicas
    :raises PruneError: if one cannot be made
    """
    if recipe.engine.replicas > 1:
        from offline.engines.ray.replicas import start_replicas

        factory = partial(make_engine, recipe)
        with start_replicas(
            factory, recipe.engine.replicas, address=recipe.engine.ray_address
        ) as replicas:
            yield replicas
        return
    engine = make_engine(recipe)
    try:
        yield (engine,)
    finally:
        close = getattr(engine, "close", None)
        if close is not None:
            close()
