"""Where commands write what people read: in colour where it may be, in logs as wide as it is."""

from __future__ import annotations

import os
import sys

from rich.console import Console

_LOG_WIDTH = 1000  # wider than any table: a log that is cut after 80 letters loses numbers

stderr = Console(stderr=True)  # honours NO_COLOR


def stdout() -> Console:
    """Return the console for tables: as wide as the terminal, or as a log needs it."""
    fits = sys.stdout.isatty() or "COLUMNS" in os.environ
    return Console(width=None if fits else _LOG_WIDTH)
