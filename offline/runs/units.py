"""Numbers as people read them."""

from __future__ import annotations


def gib(num_bytes: int) -> str:
    """Return a size in GiB, or in MiB below a tenth of one."""
    if num_bytes < 1024**3 / 10:
        return f"{num_bytes / 1024**2:.2f} MiB"
    return f"{num_bytes / 1024**3:.2f} GiB"
