"""How long a user waits to hear of a mistake, in a process of its own for each.

    python -m benchmarks.error_time --model base --scores scores

A mistake of every kind is made with a real checkpoint, beside `python -c "import torch"`, in turn.
The last line of stdout is one JSON object; its value is the slowest refusal's median seconds of
processors over those of importing torch, and ``seconds`` has all medians, on the clock and of
processors.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

import click

_MAIN = "from offline.cli.main import main; main()"
_COMPRESS = ("compress", "--model", "{model}", "--keep")
_MISTAKES: dict[str, tuple[str, ...]] = {
    "no such task": (*_COMPRESS, "4", "--task", "nope"),
    "no such device": (*_COMPRESS, "4", "--device", "abacus"),
    "too many experts": (*_COMPRESS, "4096"),
    "a setting that changes nothing": (*_COMPRESS, "4", "--floor", "2"),
    "sequences that are too long": ("score", "--model", "{model}", "--length", "100000000"),
    "a batch that cannot be shared": (*_COMPRESS, "4", "--method", "lottery", "--processes", "3"),
    "too many processes": ("recover", "--model", "{model}", "--task", "sciq", "--processes", "3"),
    "no such criterion": ("plan", "--scores", "{scores}", "--keep", "4", "--criterion", "nope"),
    "no such map": ("build", "--model", "{model}", "--map", "nowhere"),
    "no such parity": ("check", "{model}", "--dtype", "float16"),
    "no such model": ("recover", "--model", "./nowhere", "--task", "sciq"),
}
_WITHOUT_OUT = {"check", "eval"}


def _seconds(command: Sequence[str], status: int, folder: Path) -> tuple[float, float]:
    """Run a command; the seconds that it took, and those of processors."""
    began, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        [sys.executable, *command], cwd=folder, capture_output=True, text=True, check=False
    )
    took = time.perf_counter() - began
    if done.returncode != status:
        raise SystemExit(f"{' '.join(command)} ended with {done.returncode}: {done.stderr}")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return took, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


@click.command()
@click.option("--model", type=click.Path(path_type=Path, exists=True), required=True)
@click.option("--scores", type=click.Path(path_type=Path, exists=True), required=True)
@click.option("--runs", default=3, show_default=True, help="of each, after one that warms up")
def main(model: Path, scores: Path, runs: int) -> None:
    """Measure refusals against the import of torch."""
    paths = {"model": str(model.resolve()), "scores": str(scores.resolve())}
    seconds: dict[str, list[tuple[float, float]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for number in range(runs + 1):
            for name, words in {"import torch": (), **_MISTAKES}.items():
                command = ["-c", "import torch"]
                if words:
                    out = () if words[0] in _WITHOUT_OUT else ("--out", "out")
                    command = ["-c", _MAIN, *(word.format(**paths) for word in words), *out]
                took = _seconds(command, int(bool(words)), Path(folder))
                if number:
                    seconds.setdefault(name, []).append(took)
    medians = {
        name: [round(median(one), 2) for one in zip(*values, strict=True)]
        for name, values in seconds.items()
    }
    for name, (wall, cpu) in medians.items():
        click.echo(f"{wall:6.2f} s, {cpu:5.2f} s of processors  {name}", err=True)
    slowest = max(cpu for name, (_, cpu) in medians.items() if name != "import torch")
    report: dict[str, Any] = {
        "name": "error_time",
        "value": round(slowest / medians["import torch"][1], 2),
        "unit": "ratio of seconds of processors, the slowest refusal over `import torch`",
        "detail": {"runs": runs, "seconds": medians},
    }
    print(json.dumps(report))


if __name__ == "__main__":
    main()
