"""Where commands write what people read: in colour where it may be, in logs as wide as it is."""

from __future__ import annotations

import os
import sys
from typing import Any

from rich.console import Console
from rich.text import Text

from vllm_moe_prune.errors import harmless

_LOG_WIDTH = 1000  # wider than any table: a log that is cut after 80 letters loses numbers


class PlainConsole(Console):
    """Prints what files and names say as it is: no markup, no emoji, nothing that acts."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(markup=False, emoji=False, **settings)

    def render_str(self, text: str, **how: Any) -> Text:
        """Return a text to be printed."""
        return super().render_str(harmless(text), **how)


stderr = PlainConsole(stderr=True)  # honours NO_COLOR


def stdout() -> PlainConsole:
    """Return the console for tables: as wide as the terminal, or as a log needs it."""
    fits = sys.stdout.isatty() or "COLUMNS" in os.environ
    return PlainConsole(width=None if fits else _LOG_WIDTH)
