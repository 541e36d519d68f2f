"""What `vmprune score` says: how much it will take, and what it has seen."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from offline.calibration.corpus import Domain
    from offline.calibration.memory import MemoryEstimate
    from offline.calibration.scores import Scores

_NAMED = 12  # experts that the table names; --json has all


def warn(expected: MemoryEstimate) -> None:
    """Say on stderr how much memory and disk it will take."""
    from offline.cli.console import stderr
    from offline.runs.units import gib

    for title, total, parts in (
        ("memory", expected.peak, expected.memory),
        ("disk", expected.written, expected.disk),
    ):
        if not parts:
            continue
        listed = ", ".join(f"{name} {gib(size)}" for name, size in parts.items())
        stderr.print(f"{title}: about {gib(total)} ({listed})", soft_wrap=True, highlight=False)


def facts_of(domain: Domain, scores: Scores) -> dict[str, Any]:
    """Return what was read of a domain's text, and which experts it never reached."""
    unseen = [
        [layer, expert]
        for layer, statistics in scores.domains[domain.name].items()
        for expert, count in enumerate(statistics.counts)
        if count == 0
    ]
    assert domain.use is not None  # it is of a source
    return {
        "sequences": len(domain.token_ids),
        "tokens": domain.num_tokens,
        "text": domain.use.model_dump(exclude_none=True),
        "never_seen": unseen,  # [layer, expert]
    }


def show(facts: dict[str, Any]) -> None:
    """Print the table that scoring ends with."""
    from rich.table import Table

    from offline.cli.console import stdout

    table = Table("domain", title="calibration")
    for heading in ("sequences", "tokens", "rows", "skipped"):
        table.add_column(heading, justify="right")
    table.add_column("experts never seen (layer:expert)")
    for name, domain in facts["domains"].items():
        unseen = [f"{layer}:{expert}" for layer, expert in domain["never_seen"]]
        more = [f"and {len(unseen) - _NAMED} more"] if len(unseen) > _NAMED else []
        listed = " ".join([*unseen[:_NAMED], *more]) or "none"
        text = domain["text"]
        skipped = ", ".join(f"{count:,} {reason}" for reason, count in text["skipped"].items())
        numbers = (str(domain["sequences"]), f"{domain['tokens']:,}", f"{text['rows']:,}")
        table.add_row(name, *numbers, skipped or "0", listed)
    console = stdout()
    console.print(table)
    console.print(f"written to {facts['out']}", soft_wrap=True)
