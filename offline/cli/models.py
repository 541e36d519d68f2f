"""What `--model` and `--base` mean: a folder, or a model on the hub."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import click

NAMES = "a folder, or Org/Name[@revision] on the Hugging Face hub"


def model_folder(model: Path, files: Sequence[str] | None = None) -> Path:
    """Return the folder of a model that a command was given, without weights if it is the hub's.

    :param files: what is wanted of a model of the hub; all but its weights if not given
    :raises PruneError: as `located`
    """
    from offline.data.models import ALL_BUT_WEIGHTS, located, shadowed

    if (other := shadowed(model)) is not None:
        click.echo(
            f"note: {model} is the folder of that name; the hub's model is {other}@main", err=True
        )
    return located(model, ALL_BUT_WEIGHTS if files is None else files)
