"""`--gate FILE`: the option, and what a command says of its gates and ends with."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from offline.gates.gates import Gates
    from offline.gates.judge import Evidence
    from offline.results.gates import GatesResult

GATE_SETTINGS: dict[str, Any] = {
    "type": click.Path(path_type=Path),
    "help": "YAML file of limits (docs/gates.md); ends with 0 if all are kept, 1 if one is not, 3 "
    "if an interval leaves one open",
}


def say_gates(result: GatesResult, *, as_json: bool) -> None:
    """Print all gates: a line of JSON, or a table."""
    if as_json:
        click.echo(result.model_dump_json(exclude_none=True))
        return
    from offline.cli.console import stdout
    from offline.report.judged import gates_table
    from offline.report.printed import printed

    console = stdout()
    console.print(printed(gates_table(result)))
    console.print(f"gates: {result.verdict}", soft_wrap=True)


def judge_folder(
    gates: Gates, folder: Path, more: Evidence | None = None, *, save: bool = True
) -> GatesResult:
    """Judge by what commands left beside a checkpoint.

    :param more: what was measured just now and is not in the folder
    :param save: whether the folder keeps the verdicts, and its page and card show them
    """
    result = judged(gates, folder, folder.name, more)
    if save:
        from offline.report.pages import redraw

        result.save(folder)
        redraw(folder)
    return result


def judged(gates: Gates, folder: Path, name: str, more: Evidence | None = None) -> GatesResult:
    """Judge by what commands left beside a checkpoint, and keep nothing.

    :param name: of the checkpoint
    :param more: as `judge_folder`
    """
    from offline.gates.evidence import evidence_in, joined
    from offline.gates.judge import judge

    return judge(gates, joined(evidence_in(folder), more or {}), name)


def conclude(result: GatesResult, *, as_json: bool) -> None:
    """Say what was found of the gates, and end with the status that it has."""
    say_gates(result, as_json=as_json)
    if result.exit_code:
        sys.exit(result.exit_code)
