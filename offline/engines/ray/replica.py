"""`RayReplica`: an engine whose model lives in another process or on another machine, through Ray.

Ray is imported inside functions only: it comes with the [offline] extra, and a run without
replicas does not need it.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from offline.engines.base import Engine, ExpertUse
from offline.tasks.catalog import Split, Task
from offline.tasks.results import TaskResult
from vllm_moe_prune.errors import PruneError
from vllm_moe_prune.layout import MoeLayout
from vllm_moe_prune.routing_map import RoutingMap

EngineMaker = Callable[[], Engine]
_MAX_DEATHS = 3  # of one call, before the call itself is taken to be deadly
_PLACING_SECONDS = 300.0  # to find a place for a replica and start its process
_STOPPING_SECONDS = 30.0
_THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


@dataclass(frozen=True, slots=True)
class Share:
    """What each replica takes of the machines: CPU cores (also its threads) and GPUs."""

    cpus: int
    gpus: float = 0.0


class _Host:
    """The actor: holds the engine and calls its methods."""

    def __init__(self, factory: EngineMaker) -> None:
        self._factory = factory
        self._engine: Engine | None = None

    def start(self) -> int:
        """Return the process id as soon as the process is there."""
        return os.getpid()

    def load(self) -> tuple[MoeLayout, dict[int, int], int]:
        """Make the engine; apart from the constructor so that its errors arrive as they are."""
        self._engine = engine = self._factory()
        return engine.layout, dict(engine.expert_counts), engine.top_k

    def call(self, method: str, *args: Any, **options: Any) -> Any:
        """Call a method of the engine."""
        return getattr(self._engine, method)(*args, **options)

    def stop(self) -> None:
        """Let an engine with processes of its own end them."""
        close = getattr(self._engine, "close", None)
        if close is not None:
            close()


class RayReplica:
    """An `Engine` in a Ray actor. If its process dies, another one takes over where it was.

    The new process makes the engine anew, applies the map that was applied and repeats the call:
    as engines are deterministic, the result is the same.

    :param factory: makes the engine; it must pickle (a function of a module, a partial of one)
    :raises PruneError: what the factory raises, or if Ray has no place for the replica
    """

    def __init__(self, factory: EngineMaker, share: Share) -> None:
        self._factory = factory
        self._share = share
        self._applied: RoutingMap | None = None
        self.deaths = 0  # processes that were replaced
        self._actor: Any = None
        self.pid = 0  # of the process on its machine
        self.layout: MoeLayout
        self.expert_counts: Mapping[int, int]
        self.top_k: int
        try:
            self._retrying(self._start)
        except BaseException:
            self._discard()
            raise

    def apply(self, routing_map: RoutingMap | None) -> None:
        """Make the model behave as the map says (see `Engine`)."""
        self._call("apply", routing_map)
        self._applied = routing_map

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
        from ray.exceptions import RayError

        if self._actor is not None:
            with contextlib.suppress(RayError):  # dead or stuck: what follows ends it too
                _get(self._actor.stop.remote(), timeout=_STOPPING_SECONDS)
            self._discard()

    def _discard(self) -> None:
        import ray

        if self._actor is not None:
            ray.kill(self._actor)
            self._actor = None

    def _call(self, method: str, *args: Any, **options: Any) -> Any:
        def call() -> Any:
            if self._actor is None:
                self._start()
            return _get(self._actor.call.remote(method, *args, **options))

        return self._retrying(call)

    def _start(self) -> None:
        import ray

        threads = dict.fromkeys(_THREAD_VARIABLES, str(self._share.cpus))
        self._actor = (
            ray.remote(_Host)
            .options(
                num_cpus=self._share.cpus,
                num_gpus=self._share.gpus,
                runtime_env={"env_vars": threads},
            )
            .remote(self._factory)
        )
        try:
            self.pid = _get(self._actor.start.remote(), timeout=_PLACING_SECONDS)
        except ray.exceptions.GetTimeoutError:
            self._discard()
            raise PruneError(
                f"Ray found no place for a replica within {_PLACING_SECONDS:.0f} s "
                f"({self._share.cpus} CPUs, {self._share.gpus:g} GPUs)",
                hint="ask for fewer --replicas",
            ) from None
        self.layout, self.expert_counts, self.top_k = _get(self._actor.load.remote())
        if self._applied is not None:
            _get(self._actor.call.remote("apply", self._applied))

    def _retrying(self, call: Callable[[], Any]) -> Any:
        """Repeat a call in a new process when the old one died."""
        from ray.exceptions import OutOfMemoryError, RayActorError

        reason = ""
        for _ in range(_MAX_DEATHS):
            try:
                return call()
            except (RayActorError, OutOfMemoryError) as error:
                self.deaths += 1
                reason = str(error).strip().splitlines()[0]
                self._discard()
        raise PruneError(
            f"a replica's process died {_MAX_DEATHS} times at the same work: {reason}",
            hint="it may be out of memory: try fewer --replicas; Ray's logs say more",
        )


def _get(reference: Any, timeout: float | None = None) -> Any:
    """Wait for an actor's answer; a `PruneError` of the engine arrives as it was raised."""
    import ray

    try:
        return ray.get(reference, timeout=timeout)
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, PruneError):
            raise error.cause from None
        raise
