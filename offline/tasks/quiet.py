"""Keeps lm-eval and datasets from writing to a terminal whose progress belongs to the caller."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def quiet_libraries() -> Iterator[None]:
    """Show neither lm-eval's notes nor the progress bars of datasets."""
    from datasets.utils import logging as bars

    notes = logging.getLogger("lm_eval")
    level, shown = notes.level, bars.is_progress_bar_enabled()
    notes.setLevel(logging.ERROR)
    bars.disable_progress_bar()
    try:
        yield
    finally:
        notes.setLevel(level)
        if shown:
            bars.enable_progress_bar()
