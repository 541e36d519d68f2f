"""Command-line options made from a pydantic model, so that flags and files are one schema."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import UnionType
from typing import Any, Literal, TypeVar, get_args, get_origin

import click
from pydantic import BaseModel
from pydantic_core import PydanticUndefined

Command = TypeVar("Command", bound=Callable[..., Any])


def options_of(model: type[BaseModel]) -> Callable[[Command], Command]:
    """Add one option per field; its help is the field's description, its default None.

    None means "not given", so that a recipe file's entry can take its place; the help shows what
    the model's own default is.
    """

    def add(command: Command) -> Command:
        for name, field in reversed(model.model_fields.items()):
            text = field.description or ""
            if field.default not in (PydanticUndefined, None):
                text += f"  [default: {field.default}]"
            flag = f"--{name.replace('_', '-')}"
            command = click.option(flag, name, type=_type(field.annotation), help=text)(command)
        return command

    return add


def _type(annotation: Any) -> Any:
    if get_origin(annotation) is Literal:
        return click.Choice(get_args(annotation))
    if get_origin(annotation) is UnionType:  # `int | None`
        return _type(get_args(annotation)[0])
    return click.Path(path_type=Path) if annotation is Path else annotation
