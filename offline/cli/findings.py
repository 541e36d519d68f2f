"""What `lint` finds, as commands ask for it and say it."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import click

from offline.lint.lint import Finding, ModelFacts, Target, lint
from vllm_moe_prune.layouts import layout_of
from vllm_moe_prune.routing_map import MAP_FILE, RoutingMap


def findings(path: Path, target: Target | None = None) -> list[Finding]:
    """Return what is to be said about serving a map or a pruned checkpoint; a base has none.

    :param path: a checkpoint, or a routing map as file or folder
    """
    if not (path.is_file() or (path / MAP_FILE).exists()):
        return []
    facts = None
    if (path / "config.json").exists():
        from vllm_moe_prune.checkpoint import read_config

        config = read_config(path)
        facts = ModelFacts.of(layout_of(config), config)
    return lint(RoutingMap.load(path), facts, target)


def say(found: Iterable[Finding]) -> None:
    """Write one line for each on stderr."""
    for finding in found:
        click.echo(str(finding), err=True)
