"""Command-line options made from pydantic models, so that flags and files are one schema."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin

import click
import cloup
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

Command = TypeVar("Command", bound=Callable[..., Any])


def options_of(
    model: type[BaseModel], without: type[BaseModel] = BaseModel
) -> Callable[[Command], Command]:
    """Add one option per field; its help is the field's description, its default None.

    Fields that the model has from ``without`` are left out: their options stand elsewhere.

    None means "not given", so that a recipe file's entry can take its place; the help shows what
    the model's own default is.
    """

    def add(command: Command) -> Command:
        own = model.__annotations__  # before those that it inherits
        ordered = sorted(model.model_fields.items(), key=lambda entry: entry[0] not in own)
        named = [entry for entry in ordered if entry[0] not in without.model_fields]
        for name, field in reversed(named):
            command = option_of(name, field)(command)
        return command

    return add


def option_of(name: str, field: FieldInfo) -> Callable[[Command], Command]:
    """Make the option of one field."""
    text = field.description or ""
    if field.default not in (PydanticUndefined, None):
        text += f"  [default: {field.default}]"
    flag = f"--{name.replace('_', '-')}"
    if _of(field.annotation) is bool:
        flag += f"/--no-{name.replace('_', '-')}"
    made: Callable[[Command], Command] = cloup.option(
        flag, name, type=_type(field.annotation), default=None, help=text
    )
    return made


def _type(annotation: Any) -> Any:
    kind = _of(annotation)
    if get_origin(kind) is Literal:
        return click.Choice(get_args(kind))
    return click.Path(path_type=Path) if kind is Path else kind


def _of(annotation: Any) -> Any:
    """Return the type without `| None`."""
    return get_args(annotation)[0] if get_origin(annotation) in (UnionType, Union) else annotation
