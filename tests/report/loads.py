"""Pages of load tests: of records alone, and of a comparison."""

from __future__ import annotations

import tempfile
from pathlib import Path

from loadtest.metrics import Record, summarise
from loadtest.ratios import ratios
from loadtest.report import write_comparison, write_records
from loadtest.results import CompareResult, Lifetime, Settings, Side


def _records(scale: float, *, failed: bool = False) -> list[Record]:
    """Return six requests of 8 tokens; the last one may fail."""
    return [
        Record(
            kind="chat",
            started=10.0 + 0.2 * number,
            arrivals=() if failed and number == 5 else tuple(scale * t / 10 for t in range(1, 9)),
            ended=scale,
            prompt_tokens=20,
            output_tokens=None if failed and number == 5 else 8,
            error="HTTP 503: busy" if failed and number == 5 else None,
        )
        for number in range(6)
    ]


def _write(file: Path, records: list[Record]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(record.model_dump_json() + "\n" for record in records))


def of_records(*, all_failed: bool = False) -> str:
    """Return the page of one run's records."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "run.jsonl"
        found = _records(1.0, failed=True)
        _write(file, found[5:] if all_failed else found)
        return write_records([file], Path(folder) / "page.html").read_text()


def of_comparison(*, with_ratios: bool = True) -> str:
    """Return the page of two rounds of base and candidate, one of whose requests failed."""
    lives = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for number in range(2):
            for side, scale in (("base", 1.0), ("candidate", 0.8)):
                found = _records(scale + 0.01 * number, failed=side == "candidate")
                _write(folder / "rounds" / f"{number + 1}-{side}" / "users-2.jsonl", found)
                lives.append(
                    Lifetime(
                        side=side,
                        round=number,
                        model=side,
                        version=None,
                        startup_seconds=None,
                        peak_bytes=None,
                        natural_output_tokens=None,
                        points=(summarise(found, 2),),
                    )
                )
        result = CompareResult(
            base="base",
            candidate="pruned",
            settings=Settings(users=(2,), rounds=2),
            server_arguments=("--dtype", "bfloat16"),
            created="2026-03-01T13:00:00+00:00",
            lifetimes=tuple(lives),
            ratios=tuple(ratios(lives)) if with_ratios else (),
            sides=(Side(name="base", target="base"), Side(name="candidate", target="pruned")),
            machine={"processor": "x86", "cores": 2, "system": "Linux"},
            versions={"locust": "2.40"},
            verdict=("candidate, round 1, 2 users: 1 of 6 requests failed",),
        )
        (folder / "compare.json").write_text(result.model_dump_json())
        return write_comparison(folder).read_text()
