"""In which engine `vmprune eval`, `sweep` and `sensitivity` measure, and which flags go with it."""

from __future__ import annotations

from typing import Any, get_args

import click
import cloup

from offline.cli.options import Command
from offline.engines.opened import EngineName
from offline.runs.device import DType
from vllm_moe_prune.errors import PruneError


def engine_options(command: Command) -> Command:
    """Add the group of options of a command that measures maps."""
    group: Any = cloup.option_group(
        "Engine",
        cloup.option(
            "--engine",
            type=click.Choice(get_args(EngineName)),
            default="transformers",
            show_default=True,
            help="what measures; vllm takes all maps in one live engine, also quantised",
        ),
        cloup.option(
            "--tensor-parallel",
            type=click.IntRange(min=1),
            default=1,
            show_default=True,
            help="with --engine vllm: ranks that share the model",
        ),
        cloup.option(
            "--device", default="auto", show_default=True, help="of --engine transformers"
        ),
        cloup.option(
            "--dtype", type=click.Choice(get_args(DType)), default="auto", show_default=True
        ),
    )
    made: Command = group(command)
    return made


def check_engine(engine: EngineName, tensor_parallel: int, device: str) -> None:
    """Refuse flags that are of the other engine."""
    if engine == "transformers" and tensor_parallel > 1:
        raise PruneError("--tensor-parallel is of --engine vllm", hint="add --engine vllm")
    if engine == "vllm" and device != "auto":
        raise PruneError("--device is of --engine transformers", hint="leave out --device")


def refuse(flags: dict[str, bool]) -> None:
    """Refuse flags that say how to load a model where a server has loaded it."""
    for flag, given in flags.items():
        if given:
            raise PruneError(f"{flag} does not go with --endpoint", hint="the server decides that")
