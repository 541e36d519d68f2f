"""Pieces of ``make fuzz``: some inputs for one target, in one of several processes."""

from __future__ import annotations

import hashlib
import multiprocessing
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

from tests.fuzz.judge import Outcome
from tests.fuzz.running import every, run
from tests.fuzz.targets import TARGETS

KEPT = Path(__file__).parents[2] / "build" / "fuzz"
PIECE = 100  # inputs
_GROUND: list[Path] = []  # of this process


def tried(keys: list[str], processes: int, end: float) -> Iterator[tuple[str, dict[str, int]]]:
    """Yield what came of each piece; one that ended its process is counted as one wrong."""
    context = multiprocessing.get_context("spawn")
    while keys:
        with tempfile.TemporaryDirectory(prefix="fuzz-") as scratch:
            pool = ProcessPoolExecutor(processes, context, _prepare, (scratch,))
            futures = {pool.submit(_piece, key, end): key for key in keys}
            try:
                for future in as_completed(futures):
                    if (found := future.result()) is not None:
                        yield futures[future], found
                return
            except BrokenProcessPool:
                ended = [file.read_text() for file in KEPT.glob("now-*")]
                if not ended:
                    raise
                print(f"  a process ended: {', '.join(ended)}; see {KEPT}", flush=True)
                for key in ended:
                    yield key, {"wrong": 1}
                over = {futures[future] for future in futures if _is_over(future)} | set(ended)
                keys = [key for key in keys if key not in over]
            finally:
                pool.shutdown(cancel_futures=True)


def _is_over(future: Future[dict[str, int] | None]) -> bool:
    return future.done() and not future.cancelled() and future.exception() is None


def _prepare(scratch: str) -> None:
    from tests.fuzz.ground import make_ground

    folder = Path(tempfile.mkdtemp(dir=scratch))
    _GROUND.append(make_ground(folder))


def _piece(key: str, end: float) -> dict[str, int] | None:
    """Try a piece of a target's inputs, unless it is too late; return how often what came of it."""
    if time.monotonic() > end:
        return None
    name, counts, ground = key.rpartition(" ")[0], Counter[str](), _GROUND[0]
    target, now = TARGETS[name], KEPT / f"now-{ground.name}"
    now.write_text(key)
    run(target, ground, (ground / target.file).read_bytes())  # imports what it needs

    def seen(content: bytes, outcome: Outcome) -> None:
        counts["wrong" if outcome.wrong else "taken" if outcome.status == 0 else "refused"] += 1
        if outcome.wrong:
            _keep(name, content, outcome)

    begin, seed = time.monotonic(), int(hashlib.sha256(key.encode()).hexdigest()[:8], 16)
    every(target, ground, PIECE, seen, shrinks=False, number=seed)
    print(f"{key}: {dict(counts)}, {time.monotonic() - begin:.1f} s", flush=True)
    now.unlink()
    return dict(counts)


def _keep(name: str, content: bytes, outcome: Outcome) -> None:
    """Keep an input that failed, and print the first of its kind."""
    digest = hashlib.sha256(outcome.wrong.partition(": ")[2][:80].encode() or content).hexdigest()
    file = KEPT / f"{name.replace(', ', '-').replace(' ', '-')}-{digest[:8]}"
    if not file.exists():
        print(f"  {outcome.wrong}: {file}", flush=True)
        file.write_bytes(content)
