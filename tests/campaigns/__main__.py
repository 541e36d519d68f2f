"""Real kills, full disks and two at once; the tables of docs/reliability.md.

    python -m tests.campaigns kills --count 50 --seconds 1200
    python -m tests.campaigns disks --count 60
    python -m tests.campaigns pairs --count 20

Counts add up in build/campaigns/ from run to run, until there are as many as were asked for.
Commands run in forks of this process, where all is imported; `disks` mounts file systems, as root.
"""

from __future__ import annotations

import json
import random
import signal
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import click

from tests.campaigns import full
from tests.campaigns.ground import COMMANDS, Command, Ground, make_ground
from tests.campaigns.kills import Undisturbed, kill
from tests.campaigns.pairs import pair

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "reliability.md"
COUNTS = ROOT / "build" / "campaigns"
ON_SMALL_DISKS = ("compress, eep", "compress, lottery")
END = ("build", "compress, eep", "compress, lottery", "recover")  # killed after OUT has its name
_OTHERS = (signal.SIGTERM, signal.SIGINT)
Counts = dict[str, dict[str, int]]  # command -> what -> how often


@click.command()
@click.argument("campaign", type=click.Choice(["kills", "ends", "disks", "pairs"]))
@click.option("--count", type=click.IntRange(1), default=50, show_default=True)
@click.option("--only", type=click.Choice(list(COMMANDS)), help="the one command to be disturbed")
@click.option("--seconds", type=float, default=1e9, help="after which no more is begun")
@click.option("--write/--no-write", default=True, show_default=True, help="counts and page")
def main(campaign: str, count: int, only: str | None, seconds: float, write: bool) -> None:
    """Disturb commands, count, and write the page."""
    file = COUNTS / f"{campaign}.json"
    found: Counts = json.loads(file.read_text()) if file.exists() and write else {}
    COUNTS.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="vmprune-") as scratch:
        names = [only] if only else _names(campaign)
        ground, end = make_ground(Path(scratch), names), time.monotonic() + seconds
        for name in names:
            begin, own = time.monotonic(), found.setdefault(name, {})
            for what, wrong in _each(campaign, name, ground, own, count):
                own[what] = own.get(what, 0) + 1
                if wrong:
                    own["wrong"] = own.get("wrong", 0) + 1
                    print(f"  {name}: {what}: {wrong}", flush=True)
                if time.monotonic() > end:
                    break
                if write:
                    file.write_text(json.dumps(found, indent=1))
            print(f"{name}: {own}, {time.monotonic() - begin:.0f} s", flush=True)
            if time.monotonic() > end:
                break
    if write:
        file.write_text(json.dumps(found, indent=1))
        _write(campaign, found)
    raise SystemExit(any(own.get("wrong") for own in found.values()))


def _names(campaign: str) -> list[str]:
    return {
        "kills": list(COMMANDS),
        "ends": list(END),
        "disks": list(ON_SMALL_DISKS),
        "pairs": list(COMMANDS),
    }[campaign]


def _each(
    campaign: str, name: str, ground: Ground, own: dict[str, int], count: int
) -> Iterator[tuple[str, str]]:
    """Yield what was done and what was wrong with it, until there are as many as asked for."""
    place, command = ground.folder / "place", COMMANDS[name]
    if campaign == "disks":
        yield from _disks(ground, command, place, own, count)
        return
    known = Undisturbed.of(ground, command, place)
    if campaign == "pairs":
        for number in range(own.get("pairs", 0), count):
            yield "pairs", pair(ground, command, place, known, random.Random(f"{name} {number}"))
        return
    yield from _kills(campaign, name, ground, known, own, count)


def _kills(
    campaign: str, name: str, ground: Ground, known: Undisturbed, own: dict[str, int], count: int
) -> Iterator[tuple[str, str]]:
    place, command, at_the_end = ground.folder / "place", COMMANDS[name], campaign == "ends"
    draw = random.Random(f"{campaign} {name} {sum(own.values())}")
    every = (signal.SIGKILL,) if at_the_end else (signal.SIGKILL, *_OTHERS)
    for number in every:
        wanted = count if number == signal.SIGKILL else count // 5
        while own.get(number.name, 0) < wanted:
            done = kill(ground, command, place, known, number, draw, at_the_end=at_the_end)
            if done is not None:
                yield number.name, done.wrong


def _disks(
    ground: Ground, command: Command, place: Path, own: dict[str, int], count: int
) -> Iterator[tuple[str, str]]:
    peak, wanted = full.most_used(ground, command, place)
    for size in full.sizes(peak, count)[sum(own.values()) - own.get("wrong", 0) :]:
        was_full, wrong = full.fill(ground, command, place, size, wanted)
        yield "full" if was_full else "enough", wrong


def _write(campaign: str, found: Counts) -> None:
    """Put the table of a campaign into the page, between its marks."""
    begin, end = f"<!-- {campaign} -->\n", f"<!-- end of {campaign} -->\n"
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(begin)
    page = before + begin + _table(found) + end + rest.partition(end)[2]
    PAGE.write_text(page, encoding="utf-8")


def _table(found: Counts) -> str:
    columns = [*dict.fromkeys(what for own in found.values() for what in own if what != "wrong")]
    head = ["command", *columns, "wrong"]
    lines = [" | ".join(head), "|".join("---" for _ in head)]
    for name, own in found.items():
        lines.append(" | ".join([name, *(str(own.get(what, 0)) for what in [*columns, "wrong"])]))
    return "".join(f"| {line} |\n" if "---" not in line else f"|{line}|\n" for line in lines)


if __name__ == "__main__":
    main()
