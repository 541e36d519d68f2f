"""The flags that say how tasks are put to a model, the same for all commands that run some."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import cloup
from pydantic import ValidationError

from offline.cli.options import Command, option_of
from offline.tasks.prompting_settings import PromptingSettings
from vllm_moe_prune.errors import PruneError

TITLE = "Prompts and answers"


def prompting_options(command: Command) -> Command:
    """Add one option per field of `PromptingSettings`, as a group of the help."""
    options: list[Any] = [
        option_of(name, field) for name, field in PromptingSettings.model_fields.items()
    ]
    group: Any = cloup.option_group(TITLE, *options)
    made: Command = group(command)
    return made


def unfinished_note(count: int, think_end: object) -> str:
    """Say how many generations never ended their thinking.

    :param think_end: what would have ended it, or nothing
    """
    end = f" ({think_end})" if think_end else ""
    flag = "a larger --max-gen-tokens" if think_end else "--think-end and --max-gen-tokens"
    said = f"{count} generations never ended their thinking{end} and count as no answer"
    return f"{said}: give {flag}"


def prompting_of(flags: Mapping[str, Any]) -> PromptingSettings:
    """Take the flags that were given (not None).

    :raises PruneError: naming the flag that is out of range or goes with no other
    """
    given = {name: value for name, value in flags.items() if value is not None}
    try:
        return PromptingSettings.model_validate(given)
    except ValidationError as error:
        first = error.errors()[0]
        name = "".join(f"--{part}: ".replace("_", "-") for part in first["loc"])
        raise PruneError(name + first["msg"].removeprefix("Value error, ")) from None
