"""What a serving ratio is made of: from a decode step alone to what a client sees.

vLLM says of each request how long it waited, was prefilled and was decoded; the client's time less
these is HTTP, tokenizing, the scheduler's turns between requests and the client itself. Adding part
after part to the decoding on both sides shows what each takes from the ratio.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean, median
from typing import Any

from benchmarks.stepping import Work, step_in_turn
from loadtest.records import read_records
from loadtest.results import BASE, CompareResult, Lifetime

PARTS = ("decode", "prefill", "waiting", "http_and_client")


def budget(result: CompareResult, out: Path) -> dict[str, Any]:
    """Return users -> side -> milliseconds a request of each part, and the ratios as they add up.

    :param out: the folder of the comparison, for the requests' times
    """
    found: dict[str, Any] = {}
    for users in result.settings.users:
        sides = {side: _parts(result, side, users, out) for side in (BASE, *result.candidates)}
        base = sides[BASE]
        if base is None:
            continue
        ratios = {
            side: _adding_up(base, parts)
            for side, parts in sides.items()
            if side != BASE and parts is not None
        }
        found[str(users)] = {"milliseconds": sides, "base_over_side": ratios}
    return found


def _parts(result: CompareResult, side: str, users: int, out: Path) -> dict[str, float] | None:
    """Medians over the rounds; None where the server says nothing."""
    lives = [life for life in result.lifetimes if life.side == side]
    rows = [row for life in lives if (row := _of_life(life, users, out)) is not None]
    if not rows:
        return None
    return {part: round(median(row[part] for row in rows), 2) for part in PARTS}


def _of_life(life: Lifetime, users: int, out: Path) -> dict[str, float] | None:
    uses = zip(life.points, life.servers, strict=True)
    use = next((use for point, use in uses if point.users == users), None)
    if use is None or None in (use.queue_ms, use.prefill_ms, use.decode_ms):
        return None
    assert use.queue_ms is not None and use.prefill_ms is not None and use.decode_ms is not None
    file = out / "rounds" / f"{life.round + 1}-{life.side}" / f"users-{users}.jsonl"
    whole = mean(record.e2e_ms for record in read_records(file) if record.complete)
    parts = {"decode": use.decode_ms, "prefill": use.prefill_ms, "waiting": use.queue_ms}
    return parts | {"http_and_client": whole - sum(parts.values())}


def _adding_up(base: Mapping[str, float], side: Mapping[str, float]) -> dict[str, float]:
    """Base over side, of the parts up to each."""
    return {
        f"up_to_{part}": round(
            sum(base[one] for one in PARTS[: number + 1])
            / sum(side[one] for one in PARTS[: number + 1]),
            3,
        )
        for number, part in enumerate(PARTS)
    }


def step_ratios(
    engines: Mapping[str, Mapping[str, Any]],
    users: Sequence[int],
    lengths: tuple[int, int],
    rounds: int,
    threads: int,
) -> dict[str, Any]:
    """Return users -> base over each other engine of a decode step, and of a prefill, alone.

    Engines step in turn in one process, without a server, a client or a tokenizer.

    :param lengths: tokens of a prompt and of an answer
    """
    prompt, output = lengths
    found: dict[str, Any] = {}
    for number in users:
        whole = step_in_turn(engines, Work(number, prompt, output), rounds, threads)
        first = step_in_turn(engines, Work(number, prompt, 1), rounds, threads)
        prefill = {name: median(took) for name, took in first.items()}
        decode = {name: median(took) - prefill[name] for name, took in whole.items()}
        found[str(number)] = {
            part: {name: round(took[BASE] / took[name], 3) for name in engines if name != BASE}
            for part, took in (("decode", decode), ("prefill", prefill))
        }
    return found
