"""The sides of a comparison: of more than two in a YAML file, and options that are no words."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import click
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from loadtest.results import BASE
from loadtest.target import Target
from vllm_moe_prune.errors import PruneError, one_line
from vllm_moe_prune.reading import parse_json, parse_yaml, read_text


class Configuration(BaseModel):
    """One entry: a name for the tables, and what is served or the address of a server."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    name: str = Field(pattern=r"^[\w.-]+$")
    model: str
    load_format: str = "auto"
    loader_config: dict[str, Any] | None = None
    serve_args: tuple[str, ...] = ()


def read_configurations(path: Path) -> dict[str, Target]:
    """Read the file: a list, of which the first is called ``base``.

    :raises PruneError: one line that names the file and what is wrong in it
    """
    fields = parse_yaml(read_text(path), str(path))
    try:
        found = TypeAdapter(tuple[Configuration, ...]).validate_python(fields)
    except ValidationError as error:
        raise PruneError(f"{path}: {one_line(error)}", hint="see docs/loadtest.md") from error
    names = [one.name for one in found]
    if len(found) < 2 or len(set(names)) < len(names):
        raise PruneError(f"{path}: two configurations or more, each with a name of its own")
    if names[0] != BASE:
        raise PruneError(f"{path}: the first configuration is called base", hint="not " + names[0])
    return {
        one.name: Target(one.model, one.load_format, one.loader_config, one.serve_args)
        for one in found
    }


def json_object(_: click.Context, __: click.Parameter, value: str | None) -> dict[str, Any] | None:
    """An option that is a JSON object."""
    try:
        found = parse_json(value, "it") if value else None
    except PruneError as error:
        raise click.BadParameter(error.message) from error
    if found is not None and not isinstance(found, dict):
        raise click.BadParameter("must be a JSON object")
    return found


_SIZE = re.compile(r"(\d+(?:\.\d+)?)([KMGT]I?)?B?")


def size(_: click.Context, __: click.Parameter, value: str | None) -> int | None:
    """An option that is a number of bytes."""
    return None if value is None else parse_size(value)


def parse_size(text: str) -> int:
    """Return the bytes of a size such as ``4GiB`` (2^32) or ``4G`` (4,000,000,000).

    :raises click.BadParameter: if it is none
    """
    match = _SIZE.fullmatch(text.replace(" ", "").upper())
    found = 0
    if match is not None:
        unit = match.group(2) or ""
        power = " KMGT".index(unit[:1] or " ")
        found = int(float(match.group(1)) * (1024 if unit.endswith("I") else 1000) ** power)
    if not found:
        raise click.BadParameter("a number of bytes, such as 4GiB or 500MB")
    return found
