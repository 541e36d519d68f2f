"""`RayReplica`: an engine whose model lives in another process or on another machine, through Ray.

Ray is imported inside functions only: it comes with the [offline] extra, and a run without
replicas does not need it.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from offline.engines.base import Engine, ExpertUse
from offline.tasks.catalog import Split, Task
from offline.tasks.results import TaskResult
from vllm_moe_prune.errors import PruneError
from vllm_moe_prune.layout import MoeLayout
from vllm_moe_prune.routing_map import RoutingMap

_MAX_DEATHS = 3  # of one call, before the call itself is taken to be deadly
_STOPPING_SECONDS = 30.0
_THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


@dataclass(frozen=True, slots=True)
class Share:
    """What each replica takes of the machines: CPU cores (also its threads) and GPUs.

    Ray shows a replica its GPUs only (CUDA_VISIBLE_DEVICES). Less than one is a part of one that
    others have as well: Ray counts it, and whoever makes the engine limits its memory.
    """

    cpus: int
    gpus: float = 0.0


EngineMaker = Callable[[Share], Engine]


@dataclass(frozen=True, slots=True)
class _Applied:
    """The map that a call is for, and its number: 0 is the base, which a new engine is."""

    number: int = 0
    routing_map: RoutingMap | None = None


class _Host:
    """The actor: holds the engine and calls its methods.

    Ray may have put a new process in its place before any call, so each call brings its map.
    """

    def __init__(self, factory: EngineMaker, share: Share) -> None:
        # Not as Ray's runtime_env: a process for each takes seconds, one in waiting does not.
        os.environ.update(dict.fromkeys(_THREAD_VARIABLES, str(share.cpus)))
        self._factory, self._share = factory, share
        self._number = 0

    @cached_property
    def _engine(self) -> Engine:
        """Made by the first call, not with the actor, so that its errors arrive as they are."""
        return self._factory(self._share)

    def shape(self) -> tuple[MoeLayout, dict[int, int], int]:
        """Return what is the same in every process: layout, counts of experts, top-k."""
        return self._engine.layout, dict(self._engine.expert_counts), self._engine.top_k

    def apply(self, wanted: _Applied) -> None:
        """Apply a map unless it is applied."""
        if wanted.number != self._number:
            self._engine.apply(wanted.routing_map)
            self._number = wanted.number

    def call(self, applied: _Applied, method: str, *args: Any, **options: Any) -> Any:
        """Call a method of the engine with a map applied."""
        self.apply(applied)
        return getattr(self._engine, method)(*args, **options)

    def stop(self) -> None:
        """Let an engine with processes of its own end them, if it was made in this process."""
        close = getattr(vars(self).get("_engine"), "close", None)
        if close is not None:
            close()


class RayReplica:
    """An `Engine` in a Ray actor. If its process dies, Ray starts another and repeats the call.

    The new process makes the engine anew and applies the map that was applied: as engines are
    deterministic, the result is the same. The constructor only asks for the process, `wait` waits
    for its engine.

    :param factory: makes the engine for its share; it must pickle (a function of a module, a
        partial of one)
    :param placement: more options of the actor: where it is to be
    """

    layout: MoeLayout
    expert_counts: Mapping[int, int]
    top_k: int

    def __init__(self, factory: EngineMaker, share: Share, **placement: Any) -> None:
        import ray

        self._applied = _Applied()
        actor = ray.remote(_Host).options(
            num_cpus=share.cpus,
            num_gpus=share.gpus,
            max_restarts=-1,  # as often as there are calls that are repeated
            max_task_retries=_MAX_DEATHS - 1,
            **placement,
        )
        self._actor: Any = actor.remote(factory, share)

    def wait(self) -> None:
        """Wait until the engine is made.

        :raises PruneError: what the factory raises, or if the process dies again and again
        """
        self.layout, self.expert_counts, self.top_k = _get(self._actor.shape.remote())

    def apply(self, routing_map: RoutingMap | None) -> None:
        """Make the model behave as the map says (see `Engine`)."""
        wanted = _Applied(self._applied.number + 1, routing_map)
        _get(self._actor.apply.remote(wanted))
        self._applied = wanted

    def evaluate(
        self, task: Task, split: Split, limit: int | None = None, first: int = 0
    ) -> TaskResult:
        """Score items with the map now applied (see `Engine`)."""
        result: TaskResult = self._call("evaluate", task, split, limit=limit, first=first)
        return result

    def agreement(
        self, task: Task, split: Split, limit: int | None = None, first: int = 0
    ) -> TaskResult:
        """Compare with the base (see `Engine`)."""
        result: TaskResult = self._call("agreement", task, split, limit=limit, first=first)
        return result

    def usage(self, task: Task, split: Split, limit: int | None = None) -> dict[int, ExpertUse]:
        """Watch the router (see `Engine`)."""
        use: dict[int, ExpertUse] = self._call("usage", task, split, limit)
        return use

    def close(self) -> None:
        """End the engine and its process."""
        import ray

        with contextlib.suppress(ray.exceptions.RayError):  # dead or stuck: killed all the same
            ray.get(self._actor.stop.remote(), timeout=_STOPPING_SECONDS)
        ray.kill(self._actor)

    def _call(self, method: str, *args: Any, **options: Any) -> Any:
        return _get(self._actor.call.remote(self._applied, method, *args, **options))


def _get(reference: Any) -> Any:
    """Wait for an actor's answer; a `PruneError` of the engine arrives as it was raised."""
    import ray

    try:
        return ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, PruneError):
            raise error.cause from None
        raise
    except (ray.exceptions.RayActorError, ray.exceptions.OutOfMemoryError) as error:
        raise PruneError(
            f"a replica's process died {_MAX_DEATHS} times at the same work: "
            + str(error).strip().splitlines()[0],
            hint="it may be out of memory: try fewer --replicas; Ray's logs say more",
        ) from None
