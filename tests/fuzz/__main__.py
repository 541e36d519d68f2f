"""``make fuzz``: many inputs for every target, in two processes; the table of docs/reliability.md.

Prints what failed and keeps it in build/fuzz/, and ends with status 1 if anything did. Inputs come
in pieces, each with a seed of its own: ``--resume`` adds to what was done before, and does again
what failed.
"""

from __future__ import annotations

import json
import time
from pathlib import Path

import click

from tests import caches
from tests.fuzz.pieces import KEPT, PIECE, tried
from tests.fuzz.targets import TARGETS

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "reliability.md"
COUNTS = KEPT / "counts.json"
BEGIN, END = "<!-- fuzz -->\n", "<!-- end of fuzz -->\n"
Counts = dict[str, dict[str, int]]  # target and number of the piece -> how often what


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
    left = left if seconds > 0 else []  # then the table alone is written
    KEPT.mkdir(parents=True, exist_ok=True)
    for old in KEPT.glob("now-*"):
        old.unlink()
    caches.redirect()
    try:
        for key, found in tried(left, processes, end):
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
