"""What a test says at its end, and whether it failed."""

from __future__ import annotations

import argparse
import sys

from loadtest.centre import Centre


def say(centre: Centre, options: argparse.Namespace) -> bool:
    """Print what was missed, a line each, on stderr; return whether anything was."""
    tally, lines = centre.tally, []
    for name in ("ttft", "tpot", "itl", "e2e"):
        limit = getattr(options, f"slo_{name}_ms")
        if not limit:
            continue
        p95 = tally.percentile(name, 95)
        if p95 is None:
            lines.append(f"SLO missed: no {name} was measured")
        elif p95 > limit:
            lines.append(f"SLO missed: p95 {name} {p95:.0f} ms, limit {limit:.0f} ms")
    if not tally.complete:
        ends = f"{tally.failed} failed, {tally.cut} were still without an end"
        lines.append(f"no request was answered: {ends}")
    if centre.lost:
        lines.append(f"{centre.lost} requests were lost: a worker is gone")
    health = centre.health()
    for complaint in health.complaints(options.client_lag_ms):
        lines.append(
            f"the client was the bottleneck, do not believe the times: {complaint} "
            "(hint: --processes 2 or more, or another machine)"
        )
    if tally.failed and not centre.ledger.left:
        total = tally.failed + tally.complete
        lines.append(f"{tally.failed} of {total} requests failed")
    for line in lines:
        print(line, file=sys.stderr)
    return bool(lines)
