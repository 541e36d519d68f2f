"""What `lint` finds, as commands ask for it and say it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from offline.lint.lint import Finding, ModelFacts, Target, lint
from vllm_moe_prune.layouts import layout_of
from vllm_moe_prune.routing_map import MAP_FILE, RoutingMap

if TYPE_CHECKING:
    from vllm_moe_prune.checkpoint import Checkpoint
    from vllm_moe_prune.rewrite import Operation


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


def of_tensors(base: Checkpoint, operations: Sequence[Operation] | None = None) -> list[Finding]:
    """Return what vLLM would refuse, or serve wrongly, of a checkpoint's tensors.

    :param operations: that make another one of it, which is then meant
    """
    from offline.build.mtp import decoder_tensors
    from offline.build.quantised import follow
    from offline.lint.tensors import lint_tensors
    from vllm_moe_prune.quantisation import FILES, settings_beside
    from vllm_moe_prune.reading import parse_json
    from vllm_moe_prune.rewrite import Drop

    tensors, config = decoder_tensors(base), base.config
    beside = settings_beside(base.folder)
    if operations is not None:
        made = (op.target for op in operations if not isinstance(op, Drop))
        tensors = {info.name: info for info in made if not base.layout.is_mtp(info.name)}
        config, files = follow(base, operations)
        beside = parse_json(files[FILES[0]], FILES[0]) if FILES[0] in files else None
    return lint_tensors(tensors, base.layout, config, beside)


def say(found: Iterable[Finding]) -> None:
    """Write one line for each on stderr."""
    for finding in found:
        click.echo(str(finding), err=True)
