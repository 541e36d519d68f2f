"""Engines in Ray actors: the same log as one engine, deaths that lose nothing, clear errors."""

from __future__ import annotations

import os
import signal
import socket
import sys
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pytest
import ray

from offline.engines.ray import replica as replica_module
from offline.engines.ray.replica import RayReplica, Share
from offline.engines.ray.replicas import _places, _share, start_replicas
from offline.fitness.assessor import Assessor
from offline.fitness.log import EvaluationLog
from tests.fitness.fake import ONE, FakeEngine, die_at_once, make_engine, map_keeping
from tests.fitness.fake import refuse_to_load as refuse
from tests.fitness.test_assessor import OBJECTIVE, RACING, run, unordered
from tests.sample_files import write_modules
from vllm_moe_prune.errors import PruneError


@pytest.fixture(scope="module", autouse=True)
def _cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """One local Ray for all tests here: starting it takes longer than they do.

    It is started where a user has modules that are called like ours.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(write_modules(tmp_path_factory.mktemp("user")))
        patch.setenv("PYTHONPATH", str(Path(__file__).parents[3]))
        patch.setattr(os, "sched_getaffinity", lambda _: range(4))
        with start_replicas(make_engine, 1, cpus=1) as (replica,):
            replica.close()  # its core is for the tests
            yield
    assert not ray.is_initialized()


@pytest.fixture
def deadly(tmp_path: Path) -> Path:
    return tmp_path / "deadly"


def start(factory: Any, count: int, **options: Any) -> None:
    with start_replicas(factory, count, **options):
        pass


def pid_of(engine: RayReplica) -> int:
    pid: Any = engine.usage(ONE, "search")[1]
    return int(pid)


def assess(folder: Path, engines: list[Any]) -> None:
    folder.mkdir()
    log = EvaluationLog(folder / "evaluations.jsonl")
    run(Assessor(engines, OBJECTIVE, log, racing=RACING))


def test_replicas_give_the_log_of_one_engine_also_when_one_dies(
    tmp_path: Path, deadly: Path
) -> None:
    assess(tmp_path / "one", [FakeEngine()])
    with start_replicas(partial(make_engine, deadly=deadly), 2, cpus=1) as replicas:
        before = [pid_of(engine) for engine in replicas]
        assess(tmp_path / "two", replicas)
        assert [pid_of(engine) for engine in replicas] == before
        deadly.touch()  # the next evaluation takes the process with it
        assess(tmp_path / "dying", replicas)
        after = [pid_of(engine) for engine in replicas]
        assert sorted(a == b for a, b in zip(after, before, strict=True)) == [False, True]
    assert unordered(tmp_path / "one") == unordered(tmp_path / "two")
    assert unordered(tmp_path / "one") == unordered(tmp_path / "dying")


def test_a_replica_is_an_engine_and_goes_on_after_its_process_was_killed() -> None:
    local = FakeEngine()
    with start_replicas(make_engine, 1, cpus=1) as (engine,):
        assert (engine.layout, engine.expert_counts, engine.top_k) == (local.layout, {0: 8}, 2)
        assert engine.usage(ONE, "search", 3)[0] == "use of one/search/3 1"  # one thread
        for to in (engine, local):
            to.apply(map_keeping(1, 2))
        before = engine.evaluate(ONE, "search", limit=9, first=4)
        assert before == local.evaluate(ONE, "search", limit=9, first=4)
        pid = pid_of(engine)
        os.kill(pid, signal.SIGKILL)
        assert engine.agreement(ONE, "search", limit=9, first=4) == before  # the map is back
        assert pid_of(engine) != pid
        with pytest.raises(PruneError) as caught:
            engine.apply(map_keeping(7))
        assert (caught.value.message, caught.value.hint) == ("this map is refused", "take another")


def test_nothing_of_a_local_ray_listens_elsewhere_than_on_loopback() -> None:
    processes = [psutil.Process(), *psutil.Process().children(recursive=True)]
    listening = set()
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            found = process.net_connections("inet")
            addresses = [one.laddr.ip for one in found if one.status == psutil.CONN_LISTEN]
            listening |= {address.removeprefix("::ffff:") for address in addresses}
    assert len(processes) > 3
    assert listening == {"127.0.0.1"}


def test_a_factory_that_fails_is_heard(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(PruneError) as caught:
        start(refuse, 1, cpus=1)
    assert (caught.value.message, caught.value.hint) == ("no model there", "give a folder")
    monkeypatch.setattr(replica_module, "_MAX_DEATHS", 2)
    with pytest.raises(PruneError, match="died 2 times at the same work"):
        start(die_at_once, 1, cpus=1)


def test_replicas_that_do_not_fit_are_refused() -> None:
    with pytest.raises(PruneError, match="2 replicas of 4096 CPUs and 0 GPUs do not fit"):
        start(make_engine, 2, cpus=4096)
    with pytest.raises(PruneError, match="not a number from 1 on"):
        start(make_engine, 0)


@pytest.mark.parametrize(
    ("machine", "share", "places"),
    [
        ((8, 0), Share(3), 2),
        ((8, 4), Share(1, 2.0), 2),
        ((8, 2), Share(1, 1 / 3), 6),
        ((8, 2), Share(1, 0.6), 2),
        ((1, 2), Share(1, 0.5), 1),
        ((8, 0), Share(1, 1.0), 0),
    ],
)
def test_places_on_a_machine(machine: tuple[int, int], share: Share, places: int) -> None:
    assert _places(*machine, share) == places


@pytest.mark.parametrize(
    ("gpus", "count", "ranks", "each"),
    [(0, 2, 1, 0.0), (4, 2, 1, 2.0), (2, 4, 1, 0.5), (2, 3, 1, 0.5), (4, 2, 2, 2.0), (0, 2, 2, 0)],
)
def test_gpus_are_divided(
    gpus: int, count: int, ranks: int, each: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    nodes = [{"Alive": True, "Resources": {"CPU": 8.0, "GPU": float(gpus)}}]
    monkeypatch.setattr(ray, "nodes", lambda: nodes)
    assert _share(count, None, None, ranks) == Share(8 // count, each)


def test_ranks_that_find_no_gpus_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    nodes = [{"Alive": True, "Resources": {"CPU": 8.0, "GPU": 2.0}}]
    monkeypatch.setattr(ray, "nodes", lambda: nodes)
    with pytest.raises(PruneError, match="2 replicas of 1 CPUs and 2 GPUs do not fit"):
        _share(2, None, None, 2)


def test_no_ray_and_no_cluster_are_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"ray://127.0.0.1:{free.getsockname()[1]}"
        with pytest.raises(PruneError) as caught:
            start(make_engine, 2, address=address)
    assert caught.value.message.startswith(f"no Ray cluster can be used at {address}: ")
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(PruneError) as caught:
        start(make_engine, 2)
    assert caught.value.message == "replicas need ray, which is not installed"
