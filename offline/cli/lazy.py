"""A group of commands whose modules are imported when they are needed, not to list them."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import click

from offline.cli.quiet import with_quiet
from vllm_moe_prune.errors import PruneError


class LazyCommand(click.Command):
    """Stands for a command until somebody wants it: its name, and the line that lists it.

    :param source: ``package.module:attribute`` of the command
    :param line: the first sentence of the command's own help
    """

    def __init__(self, name: str, source: str, line: str) -> None:
        super().__init__(name, help=line)
        self._source = source

    def load(self) -> click.Command:
        """Import the command."""
        module, _, attribute = self._source.partition(":")
        command: Any = getattr(import_module(module), attribute)
        assert isinstance(command, click.Command), self._source
        assert command.name == self.name, f"{self._source} is called {command.name}"
        return command


class LazyGroup(click.Group):
    """Runs (and shows the help of) the commands that `LazyCommand` entries stand for."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Return the name of the command, the command itself and the words that are its own."""
        name, command, rest = super().resolve_command(ctx, args)
        found = command.load() if isinstance(command, LazyCommand) else command
        if found is not None and not isinstance(found, click.Group):
            with_quiet(found)
        _refuse_empty(rest)
        return name, found, rest


def _refuse_empty(words: list[str]) -> None:
    """Refuse a word with nothing in it: a variable of the shell's that was not set.

    :raises PruneError: naming the flag before it
    """
    for before, word in zip(["", *words], words, strict=False):
        flag = before if before.startswith("--") else "an argument"
        if not word:
            raise PruneError(f"{flag} is empty", hint="leave it out, or say what it is to be")
        if word.startswith("--") and word.endswith("="):
            raise PruneError(f"{word[:-1]} is empty", hint="leave it out, or say what it is to be")
