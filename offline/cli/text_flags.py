"""The flags that say which plain text a model is measured on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
import cloup

from offline.cli.models import NAMES
from offline.cli.options import Command

TITLE = "Plain text"
# Those of offline/fitness/documents.py, which a test holds: that file costs time to import.
DOCUMENTS, LENGTH = 100, 512
LENGTH_SETTINGS: dict[str, Any] = {
    "type": click.IntRange(min=2),
    "default": LENGTH,
    "show_default": True,
    "help": "tokens that are read of a document",
}


def text_options(command: Command) -> Command:
    """Add the flags of perplexity and agreement, as a group of the help."""
    group: Any = cloup.option_group(
        TITLE,
        cloup.option(
            "--perplexity",
            metavar="SOURCE",
            help=f"text to read: [NAME=]SOURCE[:DOCUMENTS],... (docs/text.md), {DOCUMENTS} of each "
            "if not told",
        ),
        cloup.option(
            "--agreement",
            metavar="SOURCE",
            help="likewise, and compare the next tokens with the base's: the share of equal first "
            "ones, and KL(base || model)",
        ),
        cloup.option(
            "--base",
            help=f"what text is compared with, where that is not the base of --map: {NAMES}, or "
            "the address of a server",
        ),
        cloup.option("--length", **LENGTH_SETTINGS),
        cloup.option(
            "--seed",
            type=int,
            default=0,
            show_default=True,
            help="of the order of documents, and of their intervals",
        ),
        cloup.option(
            "--save",
            type=click.Path(path_type=Path, exists=True, file_okay=False),
            help="put text_quality.json into this folder, that of the pruned checkpoint: for its "
            "report and gates",
        ),
    )
    made: Command = group(command)
    return made
