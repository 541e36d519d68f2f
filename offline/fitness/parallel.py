"""Running jobs on several engines at once, one thread each."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from queue import SimpleQueue
from typing import TypeVar

from offline.engines.base import Engine

_T = TypeVar("_T")


def run_on(
    engines: Sequence[Engine], jobs: Sequence[Callable[[Engine], _T]]
) -> Iterator[tuple[int, _T]]:
    """Run jobs on whichever engine is free; yields (place of the job, what it gave) as they end.

    When a job fails, none is begun any more, those under way are finished and yielded, and the
    first failure is raised last: so nothing that was evaluated is lost.
    """
    if len(engines) == 1 or len(jobs) == 1:
        for number, job in enumerate(jobs):
            yield number, job(engines[0])
        return
    free: SimpleQueue[Engine] = SimpleQueue()
    for engine in engines:
        free.put(engine)

    def work(job: Callable[[Engine], _T]) -> _T:
        engine = free.get()
        try:
            return job(engine)
        finally:
            free.put(engine)

    failure: BaseException | None = None
    pool = ThreadPoolExecutor(len(engines), thread_name_prefix="engine")
    try:
        futures: dict[Future[_T], int] = {pool.submit(work, j): n for n, j in enumerate(jobs)}
        for future in as_completed(futures):
            if future.cancelled():
                continue
            error = future.exception()
            if error is None:
                yield futures[future], future.result()
            elif failure is None:
                failure = error
                for other in futures:
                    other.cancel()
    finally:
        pool.shutdown(cancel_futures=True)
    if failure is not None:
        raise failure
