"""``make fuzz``: many inputs for every target, in one process; the table of docs/reliability.md.

Prints one line for each target, keeps what failed in build/fuzz/, and ends with status 1 if
anything did.
"""

from __future__ import annotations

import hashlib
import tempfile
import time
from collections import Counter
from pathlib import Path

import click

from tests.fuzz.ground import make_ground
from tests.fuzz.judge import Outcome
from tests.fuzz.running import every, run
from tests.fuzz.targets import TARGETS

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "reliability.md"
KEPT = ROOT / "build" / "fuzz"
BEGIN, END = "<!-- fuzz -->\n", "<!-- end of fuzz -->\n"


@click.command()
@click.option("--inputs", type=click.IntRange(1), default=20_000, show_default=True)
@click.option("--only", help="the one target to be tried")
@click.option("--write/--no-write", default=True, show_default=True, help="the table of the page")
def main(inputs: int, only: str | None, write: bool) -> None:
    """Damage files and look at what is said of them."""
    names = [only] if only else list(TARGETS)
    rows, failed = [], 0
    with tempfile.TemporaryDirectory(prefix="fuzz-") as scratch:
        ground = make_ground(Path(scratch))
        for name in names:
            target, counts = TARGETS[name], Counter[str]()
            run(target, ground, (ground / target.file).read_bytes())  # imports what it needs
            begin = time.perf_counter()

            def seen(
                content: bytes, outcome: Outcome, name: str = name, counts: Counter[str] = counts
            ) -> None:
                counts[
                    "wrong" if outcome.wrong else "taken" if outcome.status == 0 else "refused"
                ] += 1
                if outcome.wrong:
                    _keep(name, content, outcome)

            every(target, ground, -(-inputs // len(names)), seen, shrinks=False)
            seconds = time.perf_counter() - begin
            rows.append((name, counts["refused"], counts["taken"], counts["wrong"]))
            failed += counts["wrong"]
            print(f"{name}: {dict(counts)}, {seconds:.0f} s", flush=True)
    if write and not only:
        _write(rows)
    print(f"{sum(sum(row[1:]) for row in rows)} inputs, {failed} wrong")
    raise SystemExit(failed > 0)


def _keep(name: str, content: bytes, outcome: Outcome) -> None:
    """Keep an input that failed, and print the first of its kind."""
    KEPT.mkdir(parents=True, exist_ok=True)
    digest = hashlib.sha256(outcome.wrong.partition(": ")[2][:80].encode() or content).hexdigest()
    file = KEPT / f"{name.replace(', ', '-').replace(' ', '-')}-{digest[:8]}"
    if not file.exists():
        print(f"  {outcome.wrong}: {file}", flush=True)
        file.write_bytes(content)


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
