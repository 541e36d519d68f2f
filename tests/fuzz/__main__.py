"""``make fuzz``: many inputs for every target, in two processes; the table of docs/reliability.md.

Prints what failed and keeps it in build/fuzz/, and ends with status 1 if anything did. Inputs come
in pieces, each with a seed of its own: ``--resume`` adds to what was done before, and does again
what failed.
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import click

from tests import caches
from tests.fuzz.judge import Outcome
from tests.fuzz.running import every, run
from tests.fuzz.targets import TARGETS

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "reliability.md"
KEPT = ROOT / "build" / "fuzz"
COUNTS = KEPT / "counts.json"
BEGIN, END = "<!-- fuzz -->\n", "<!-- end of fuzz -->\n"
PIECE = 100  # inputs
Counts = dict[str, dict[str, int]]  # target and number of the piece -> how often what
_GROUND: list[Path] = []


@click.command()
@click.option("--inputs", type=click.IntRange(1), default=20_000, show_default=True)
@click.option("--only", help="the one target to be tried")
@click.option("--write/--no-write", default=True, show_default=True, help="the table of the page")
@click.option("--processes", type=click.IntRange(1), default=2, show_default=True)
@click.option("--resume", is_flag=True, help="add to what was done before")
@click.option("--seconds", type=float, default=1e9, help="after which no piece is begun")
def main(
    inputs: int, only: str | None, write: bool, processes: int, resume: bool, seconds: float
) -> None:
    """Damage files and look at what is said of them."""
    names, end = [only] if only else list(TARGETS), time.monotonic() + seconds
    counts: Counts = json.loads(COUNTS.read_text()) if resume and COUNTS.exists() else {}
    pieces = -(-inputs // (len(names) * PIECE))
    wanted = {f"{name} {number}" for number in range(pieces) for name in names}
    left = [key for number in range(pieces) for key in (f"{name} {number}" for name in names)]
    left = [key for key in left if key not in counts or counts[key].get("wrong")]
    KEPT.mkdir(parents=True, exist_ok=True)
    for old in KEPT.glob("now-*"):
        old.unlink()
    caches.redirect()
    try:
        for key, found in _tried(left, processes, end):
            counts[key] = found
            COUNTS.write_text(json.dumps(counts))
    finally:
        caches.remove()
    done = {key: found for key, found in counts.items() if key in wanted}
    rows = [(name, *_sums(done, name)) for name in names]
    if write and not only:
        _write(rows)
    failed = sum(row[3] for row in rows)
    print(f"{sum(sum(row[1:]) for row in rows):,} inputs, {failed} wrong")
    raise SystemExit(failed > 0)


def _tried(keys: list[str], processes: int, end: float) -> Iterator[tuple[str, dict[str, int]]]:
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


def _sums(counts: Counts, name: str) -> tuple[int, int, int]:
    own = [found for key, found in counts.items() if key.rpartition(" ")[0] == name]
    refused, taken, wrong = (
        sum(one.get(what, 0) for one in own) for what in ("refused", "taken", "wrong")
    )
    return refused, taken, wrong


def _write(rows: list[tuple[str, int, int, int]]) -> None:
    page = PAGE.read_text(encoding="utf-8")
    before, _, rest = page.partition(BEGIN)
    lines = ["| what was damaged, and read by | refused | taken | wrong |", "|---|---|---|---|"]
    lines += [
        f"| {name} | {refused:,} | {taken:,} | {wrong} |" for name, refused, taken, wrong in rows
    ]
    sums = [sum(row[place] for row in rows) for place in (1, 2, 3)]
    lines.append(f"| **all, {sum(sums):,}** | {sums[0]:,} | {sums[1]:,} | {sums[2]} |")
    text = "\n".join(lines) + "\n"
    PAGE.write_text(before + BEGIN + text + END + rest.partition(END)[2], encoding="utf-8")


if __name__ == "__main__":
    main()
