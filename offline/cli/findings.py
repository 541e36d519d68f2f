"""What `lint` found, as commands say it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from offline.lint.lint import Finding


def say(findings: Iterable[Finding]) -> None:
    """Write one line for each on stderr."""
    for finding in findings:
        click.echo(str(finding), err=True)
