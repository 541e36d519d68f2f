"""What a server's log says about why it ended and what it loaded."""

from __future__ import annotations

import re
from collections.abc import Sequence

_ANSI = re.compile(r"\x1b\[[0-9;]*m")
# "(EngineCore pid=12) ERROR 11-22 02:30:48 [core.py:1018] message": all but the message.
_PREFIX = re.compile(
    r"^(?:\([^)]*pid=\d+\)\s*)*"
    r"(?:(?:DEBUG|INFO|WARNING|ERROR|CRITICAL)\s+[\d-]+\s+[\d:.]+\s+(?:\[[^\]]*\]\s*)*)?"
)
_EXCEPTION = re.compile(r"^(?:[\w.]*(?:Error|Exception|NotFound|Refused)|[\w./-]+: error): .+")
# One process reports that another one failed: true, and of no use to the reader.
_SECOND_HAND = re.compile(r"initialization failed|root cause|failed with error|died unexpectedly")
_PYDANTIC = re.compile(r"ValidationError: \d+ validation errors? for")
_VALUE_ERROR = re.compile(r"\s*Value error, (?P<text>.*?)(?: \[type=.*)?$")


def last_error(log: str) -> str:
    """The line of ``log`` that best says why the server ended; "" for an empty log.

    The last exception or usage error that is not a report about another process, otherwise the
    last line with any text.
    """
    lines = [_PREFIX.sub("", _ANSI.sub("", line)).rstrip() for line in log.splitlines()]
    first_hand, second_hand = "", ""
    for number, line in enumerate(lines):
        if not _EXCEPTION.match(line):
            continue
        if _SECOND_HAND.search(line):
            second_hand = line
        else:
            first_hand = _pydantic_reason(lines, number) or line
    if first_hand or second_hand:
        return first_hand or second_hand
    return next((line.strip() for line in reversed(lines) if line.strip()), "")


def _pydantic_reason(lines: Sequence[str], number: int) -> str | None:
    """The reason that pydantic writes below its headline, which alone says nothing."""
    if not _PYDANTIC.search(lines[number]):
        return None
    reasons = (_VALUE_ERROR.match(line) for line in lines[number + 1 : number + 4])
    return next((reason["text"] for reason in reasons if reason), None)
