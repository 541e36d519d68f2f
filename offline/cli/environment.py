"""Environment variables by which an option reaches all that a command does, and its children."""

from __future__ import annotations

import os

import click


def set_for(context: click.Context, *names: str) -> None:
    """Set variables to 1 until the command is over: another one in this process is its own."""
    before = {name: os.environ.get(name) for name in names}
    os.environ.update(dict.fromkeys(names, "1"))

    def restore() -> None:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value

    context.call_on_close(restore)
