"""Errors of a command line: bad input is one line and exit status 1."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

from vllm_moe_prune.errors import PruneError

ResultT = TypeVar("ResultT")


class OneLineError(click.ClickException):
    """A ``PruneError`` as click shows errors."""

    def show(self, file: Any = None) -> None:
        """Print the line."""
        click.echo(f"error: {self.message}", err=True)


def one_line(action: Callable[[], ResultT]) -> ResultT:
    """Run ``action``; a mistake of the user's or a full disk ends the program with one line."""
    try:
        return action()
    except (PruneError, OSError) as error:
        raise OneLineError(str(error)) from error
