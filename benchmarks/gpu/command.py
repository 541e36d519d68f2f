"""The command line that both scripts have."""

from __future__ import annotations

import json
import platform
import sys
from collections.abc import Mapping
from pathlib import Path

import click

from benchmarks.gpu.steps import Step, report, run_all, run_here


def command(
    name: str, module: str, steps: Mapping[str, Step], text: str, *, apart: bool
) -> click.Command:
    """Return the command that runs ``steps`` and prints one line of JSON.

    :param text: of its --help
    :param apart: run each step in a process of its own on a CPU as well
    """

    @click.command(context_settings={"show_default": True}, help=text)
    @click.option("--device", help="cuda or cpu; cuda where there is one")
    @click.option("--tiny/--full", default=None, help="sizes; tiny on a CPU")
    @click.option("--step", "chosen", type=click.Choice(list(steps)), multiple=True, help="only")
    @click.option("--result", type=click.Path(path_type=Path), hidden=True)
    def main(
        device: str | None, tiny: bool | None, chosen: tuple[str, ...], result: Path | None
    ) -> None:
        place = device or _usual_device()
        small = place == "cpu" if tiny is None else tiny
        if result is not None:  # one step, asked for by `run_apart`
            found = run_here(steps[chosen[0]], place, tiny=small)
            result.write_text(json.dumps(found))
            return
        wanted = {one: step for one, step in steps.items() if not chosen or one in chosen}
        found = run_all(
            module,
            wanted,
            place,
            tiny=small,
            apart=apart or place != "cpu",
            tell=lambda line: click.echo(line, err=True),
        )
        line = report(name, found, {"device": _name_of(place), "tiny": small})
        click.echo(json.dumps(line))
        sys.exit(0 if all(step["passed"] for step in found.values()) else 1)

    return main


def _usual_device() -> str:
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def _name_of(device: str) -> str:
    if device == "cpu":
        return f"cpu ({platform.machine()})"
    import torch

    major, minor = torch.cuda.get_device_capability(device)
    return f"{torch.cuda.get_device_name(device)} (sm_{major}{minor}, torch {torch.__version__})"
