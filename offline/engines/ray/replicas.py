"""Several engines in a Ray cluster, which is started on this machine on demand."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

from offline.engines.needs import check_ray, unreachable
from offline.engines.ray.replica import EngineMaker, RayReplica, Share
from vllm_moe_prune.errors import PruneError

_ATTEMPTS = 3
_PLACING_SECONDS = 300.0
_LOCAL_STORE_BYTES = 256 * 1024**2  # maps and results are small


@contextmanager
def start_replicas(
    factory: EngineMaker,
    count: int,
    *,
    address: str | None = None,
    cpus: int | None = None,
    gpus: float | None = None,
    ranks: int = 1,
) -> Iterator[Sequence[RayReplica]]:
    """Give ``count`` copies of an engine for the length of a block.

    Their processes start all at once, their engines one after the other: vLLM measures how much
    memory a GPU has left.

    After the block they are ended, and Ray with them if it was started for them.

    :param address: a running Ray cluster (``auto``, ``HOST:PORT``, ``ray://HOST:PORT``); None or
        ``local`` starts Ray on this machine, without dashboard and usage statistics
    :param cpus: cores and threads of each; the machines' divided among them if not given
    :param gpus: GPUs of each; divided likewise (a part of one where there are fewer than replicas)
    :param ranks: GPUs that an engine needs, where there are any
    :raises PruneError: if Ray is not installed or not there, if the machines are too few, or what
        the factory raises
    """
    if count < 1:
        raise PruneError(f"--replicas {count} is not a number from 1 on")
    cores = len(os.sched_getaffinity(0))
    owns_ray = _connect(address, num_cpus=max(cores, (cpus or 1) * count))
    try:
        with _placed(factory, count, _share(count, cpus, gpus, ranks)) as replicas:
            for replica in replicas:
                replica.wait()
            yield replicas
    finally:
        if owns_ray:
            import ray

            ray.shutdown()


@contextmanager
def _placed(factory: EngineMaker, count: int, share: Share) -> Iterator[Sequence[RayReplica]]:
    """Reserve the places of all replicas at once, which stay theirs over deaths, and fill them."""
    from ray.util.placement_group import placement_group, remove_placement_group
    from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

    place = {"CPU": float(share.cpus)} | ({"GPU": share.gpus} if share.gpus else {})
    group = placement_group([place] * count)
    replicas: list[RayReplica] = []
    try:
        if not group.wait(_PLACING_SECONDS):
            raise PruneError(
                f"Ray found no place for {count} replicas within {_PLACING_SECONDS:.0f} s "
                f"({share.cpus} CPUs, {share.gpus:g} GPUs each)",
                hint="ask for fewer --replicas",
            )
        for number in range(count):
            strategy = PlacementGroupSchedulingStrategy(group, number)
            replicas.append(RayReplica(factory, share, scheduling_strategy=strategy))
        yield replicas
    finally:
        for replica in replicas:  # before the group: what lost its place would wait for another
            replica.close()
        remove_placement_group(group)


def _connect(address: str | None, num_cpus: int) -> bool:
    """Connect to Ray or start it; returns whether it has to be ended."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    try:
        import ray
    except ImportError:
        raise PruneError(
            "replicas need ray, which is not installed",
            hint="pip install 'vllm-moe-prune[offline]'",
        ) from None
    if ray.is_initialized():
        return False
    # Ray puts the caller's folder first in its workers' sys.path, where a user may have an
    # `offline.py`; it does not do so for jobs of its client.
    job = ray.job_config.JobConfig(_client_job=True)
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR", "job_config": job}
    if address is None or address == "local":
        options |= {"address": "local", "num_cpus": num_cpus, "include_dashboard": False}
        options["object_store_memory"] = _LOCAL_STORE_BYTES
    else:
        check_ray(address)
        options["address"] = address
    for attempt in range(1, _ATTEMPTS + 1):  # Ray waits 30 s for itself, too little under load
        try:
            with _on_loopback() if options["address"] == "local" else nullcontext():
                ray.init(**options)
            break
        except Exception as error:  # plain ones too
            ray.shutdown()
            if attempt == _ATTEMPTS:
                reason = (str(error).strip() or type(error).__name__).splitlines()[0]
                raise unreachable(address or "local", reason) from None
    return True


@contextmanager
def _on_loopback() -> Iterator[None]:
    """Let a Ray that is started in this block be reached from this machine alone.

    Elsewhere than on Windows and macOS it listens on all of the machine's addresses; this is its
    switch for that.
    """
    from ray._private import ray_constants

    name = ray_constants.ENABLE_RAY_CLUSTERS_ENV_VAR
    before = ray_constants.ENABLE_RAY_CLUSTER, os.environ.get(name)
    ray_constants.ENABLE_RAY_CLUSTER, os.environ[name] = False, "0"
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = before[0]
        os.environ.pop(name) if before[1] is None else os.environ.update({name: before[1]})


def _share(count: int, cpus: int | None, gpus: float | None, ranks: int) -> Share:
    """Divide the machines among the replicas and see that each has a place on one."""
    import ray

    nodes = [
        (int(node["Resources"].get("CPU", 0)), int(node["Resources"].get("GPU", 0)))
        for node in ray.nodes()  # type: ignore[no-untyped-call]
        if node["Alive"]
    ]
    num_gpus = sum(gpu for _, gpu in nodes)
    if gpus is None:
        gpus = float(num_gpus // count) if num_gpus >= count else 0.0
        if 0 < num_gpus < count:
            gpus = 1 / math.ceil(count / num_gpus)
        if num_gpus and ranks > 1:
            gpus = float(max(ranks, int(gpus)))
    sizes = [cpus] if cpus else range(max(1, *(cpu for cpu, _ in nodes)), 0, -1)
    for size in sizes:
        if sum(_places(cpu, gpu, Share(size, gpus)) for cpu, gpu in nodes) >= count:
            return Share(size, gpus)
    raise PruneError(
        f"{count} replicas of {cpus or 1} CPUs and {gpus:g} GPUs do not fit on Ray's machines: "
        + "; ".join(f"{cpu} CPUs and {gpu} GPUs" for cpu, gpu in nodes),
        hint="ask for fewer --replicas or less for each",
    )


def _places(cpus: int, gpus: int, share: Share) -> int:
    """Return how many replicas a machine can hold; a part of a GPU is of one GPU."""
    places = cpus // share.cpus
    if share.gpus >= 1:
        return min(places, int(gpus // share.gpus))
    if share.gpus > 0:
        return min(places, gpus * int(1 / share.gpus + 1e-6))
    return places
