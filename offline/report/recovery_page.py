"""The page of `vmprune recover`: what pruning cost and what brings it back; needs no network."""

from __future__ import annotations

from pathlib import Path

from offline.report import answers, recovery_tables, tables, words
from offline.report.judged import Judged, gates_table, text_table
from offline.report.recovery_figures import recovery_bars
from offline.report.render import REPORT_FILE
from offline.report.template import fill
from offline.results.recovery import Mode, Recovery
from offline.runs.owned import check_page
from vllm_moe_prune.provenance import write_atomic


def write_page(folder: Path) -> Path:
    """Draw the page of a recovery from the file beside its checkpoint.

    :returns: the page, ``folder/report.html``
    :raises PruneError: if the result is missing or damaged, or another page is there
    """
    check_page(folder / REPORT_FILE)
    write_atomic(folder / REPORT_FILE, render(Recovery.load(folder), Judged.beside(folder)))
    return folder / REPORT_FILE


def render(recovery: Recovery, judged: Judged | None = None) -> str:
    """Return the page.

    :param judged: what gates, plain text and the probes of `vmprune check` said
    """
    judged = judged or Judged()
    return fill(
        "recovery.html",
        provenance=recovery.provenance,
        recovery=recovery,
        outcome=outcome(recovery),
        cards=[*key_figures(recovery), *judged.cards],
        judged=judged,
        answers=answers,
        gates_table=gates_table,
        text_table=text_table,
        figures={"recovery": recovery_bars(recovery)} if recovery.cells else {},
        recovery_tables=recovery_tables,
        tables=tables,
        words=words,
    )


def outcome(recovery: Recovery) -> str:
    """Say in one sentence per task what was lost and what came back."""
    said: list[str] = []
    modes: tuple[Mode, Mode] = ("zero-shot", recovery.after)
    for task in recovery.tasks:
        before, after = (recovery.cell("model", mode, task) for mode in modes)
        base = recovery.cell("base", "zero-shot", task)
        if before is None or after is None:
            continue
        lost = f"base {words.percent(base.accuracy)}, pruned " if base else ""
        said.append(
            f"{words.plain(task)}: {lost}{words.percent(before.accuracy)}, after the finetune "
            f"{words.percent(after.accuracy)}."
        )
    return " ".join(said)


def key_figures(recovery: Recovery) -> list[tuple[str, str, str]]:
    """Return name, value and small print of the figures on top of the page."""
    cards = [("Examples", f"{recovery.lessons:,}", "trained on")]
    for done in recovery.trained:
        if done.subject == "model":
            tuning = done.tuning
            cards.append(("Steps", f"{tuning.steps:,}", f"{tuning.tokens:,} tokens with a loss"))
            loss = f"{done.losses[0]:.2f} to {done.losses[1]:.2f}"
            cards.append(("Loss", loss, "first and last tenth of the steps"))
            peak = words.gib(done.peak_bytes)
            cards.append(("Peak memory", peak, f"{tuning.parameters:,} parameters trained"))
    for task in recovery.tasks:
        share = recovery.won_back(task, recovery.after)
        if share is not None:
            small = f"of what {words.plain(task)} lost, by the finetune"
            cards.append(("Won back", words.percent(share, 0), small))
    return cards
