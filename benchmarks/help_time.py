"""How long `vmprune --help` takes in an environment that holds the wheel and nothing else.

    python -m benchmarks.help_time [--before COMMIT]

The wheel of the committed state is built and installed, with its dependencies, into a new virtual
environment; then `vmprune --help` and `python -c pass` run in turn. ``--before`` does the same with
an earlier commit. The last line of stdout is one JSON object; its value is the medians' ratio.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
import venv
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import click

_ROOT = Path(__file__).parent.parent
_PASS = ("python", "-c", "pass")


@dataclass(frozen=True, slots=True)
class Installed:
    """A wheel's size in bytes and the environment that it was installed into."""

    wheel_bytes: int
    bin: Path

    def seconds(self, *command: str) -> float:
        """Run a command of the environment once."""
        began = time.perf_counter()
        words = [str(self.bin / command[0]), *command[1:]]
        subprocess.run(words, check=True, stdout=subprocess.DEVNULL)
        return time.perf_counter() - began

    def measure(self, runs: int) -> dict[str, Any]:
        """Return the median seconds of both commands, which take turns."""
        seconds: dict[str, list[float]] = {"help": [], "pass": []}
        for number in range(runs + 1):
            for name, command in (("help", ("vmprune", "--help")), ("pass", _PASS)):
                took = self.seconds(*command)
                if number:  # the first reads the files from the disk
                    seconds[name].append(took)
        medians = {name: round(median(values), 4) for name, values in seconds.items()}
        ratio = round(medians["help"] / medians["pass"], 2)
        return {"wheel_bytes": self.wheel_bytes, "seconds": medians, "ratio": ratio}


def install(commit: str, folder: Path) -> Installed:
    """Build the wheel of a commit and install it, with its dependencies, into an environment."""
    source = folder / "source"
    subprocess.run(["git", "clone", "-q", "--no-checkout", str(_ROOT), str(source)], check=True)
    subprocess.run(["git", "-C", str(source), "checkout", "-q", commit], check=True)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    build = ["wheel", "-q", "--no-deps", "-w", str(folder), str(source)]
    subprocess.run([*pip, *build], check=True)
    (wheel,) = folder.glob("*.whl")
    place = folder / "environment"
    venv.create(place, symlinks=True)
    subprocess.run([*pip, "--python", str(place), "install", "-q", str(wheel)], check=True)
    return Installed(wheel.stat().st_size, place / "bin")


@click.command()
@click.option("--before", help="an earlier commit to compare with")
@click.option("--runs", default=21, show_default=True, help="of each command")
def main(before: str | None, runs: int) -> None:
    """Measure `vmprune --help` against a Python that does nothing."""
    found: dict[str, Any] = {}
    for name, commit in (("now", "HEAD"), ("before", before)):
        if commit is None:
            continue
        with tempfile.TemporaryDirectory() as folder:
            found[name] = install(commit, Path(folder)).measure(runs)
        click.echo(f"{name}: {found[name]}", err=True)
    detail = {"runs": runs, **found}
    value = found["now"]["ratio"]
    unit = "ratio of seconds, `vmprune --help` over `python -c pass`"
    print(json.dumps({"name": "help_time", "value": value, "unit": unit, "detail": detail}))


if __name__ == "__main__":
    main()
