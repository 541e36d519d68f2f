"""Where commands write what people read beside the result: stderr, in colour where it may be."""

from __future__ import annotations

from rich.console import Console

stderr = Console(stderr=True)  # honours NO_COLOR
