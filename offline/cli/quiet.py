"""`--quiet`: the one option that every command has."""

from __future__ import annotations

from typing import Any

import click

from offline.cli.environment import set_for

QUIET = "VMPRUNE_QUIET"  # environment variable: it reaches the children of a command, too


def with_quiet(command: click.Command) -> None:
    """Let a command be told to show no progress: the last of its options, the same for all."""
    if not any(parameter.name == "quiet" for parameter in command.params):
        command.params.append(click.Option(["-q", "--quiet"], **QUIET_SETTINGS))


def _be_quiet(context: click.Context, parameter: click.Parameter, value: bool) -> None:
    if value:
        set_for(context, QUIET, "HF_HUB_DISABLE_PROGRESS_BARS")


QUIET_SETTINGS: dict[str, Any] = {
    "is_flag": True,
    "expose_value": False,
    "callback": _be_quiet,
    "help": "show no progress",
}
