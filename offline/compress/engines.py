"""Opening the engines that a recipe asks for: one in this process, or replicas through Ray."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial

from offline.compress.recipe.recipe import CompressRecipe
from offline.engines.base import Engine
from offline.engines.ray.replica import Share

EngineFactory = Callable[[CompressRecipe], Engine]
_GPU_MEMORY = 0.9  # of a GPU, which vLLM engines share that have it together


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
            enforce_eager=not settings.cuda_graphs,
            gpu_memory=settings.gpu_memory,
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

        settings = recipe.engine
        factory = partial(_replica, make_engine, recipe)
        with start_replicas(
            factory,
            settings.replicas,
            address=settings.ray_address,
            ranks=settings.tensor_parallel if settings.name == "vllm" else 1,
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


def _replica(make_engine: EngineFactory, recipe: CompressRecipe, share: Share) -> Engine:
    """Make one of several engines, which takes its part of a GPU that it has not to itself."""
    if recipe.engine.name == "vllm" and 0 < share.gpus < 1:
        part = (recipe.engine.gpu_memory or _GPU_MEMORY) * share.gpus
        engine = recipe.engine.model_copy(update={"gpu_memory": part})
        recipe = recipe.model_copy(update={"engine": engine})
    return make_engine(recipe)
