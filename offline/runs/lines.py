"""Logs of a line for each result, which a kill may have left with half a line at the end."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from vllm_moe_prune.reading import read_bytes

_MOST = 1 << 36  # bytes of a log


def whole_lines(log: Path) -> Iterator[tuple[str, bytes]]:
    """Cut off a last line that is half-written; yield the others, each after where it stands.

    :raises PruneError: if there is a log that cannot be read
    """
    if not log.exists():
        return
    content = read_bytes(log, most=_MOST)
    end = content.rfind(b"\n") + 1
    if end < len(content):
        with log.open("rb+") as stream:
            stream.truncate(end)
    for number, line in enumerate(content[:end].splitlines(), start=1):
        yield f"{log}, line {number}", line
