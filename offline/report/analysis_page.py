"""`analysis.html`: an `Analysis` on one page that needs no network."""

from __future__ import annotations

from statistics import fmean

from offline.report import analysis_tables, tables, words
from offline.report.analysis_figures import figures_of
from offline.report.template import fill
from offline.results.analysis import Analysis

ANALYSIS_PAGE = "analysis.html"


def render(analysis: Analysis) -> str:
    """Return the page."""
    return fill(
        ANALYSIS_PAGE,
        provenance=analysis.provenance,
        outcome="",
        analysis=analysis,
        cards=key_figures(analysis),
        figures=figures_of(analysis),
        domains=list(analysis.by_domain[0].shares) if analysis.by_domain else [],
        analysis_tables=analysis_tables,
        tables=tables,
        words=words,
    )


def key_figures(analysis: Analysis) -> list[tuple[str, str, str]]:
    """Return name, value and small print of the figures on top of the page."""
    layers, after = analysis.layers, analysis.after
    worst = max(layers, key=lambda layer: layer.max_over_mean)
    unseen = sum(len(layer.unseen) for layer in layers)
    experts = sum(len(layer.experts) for layer in layers)
    cards = [
        ("Tokens", f"{layers[0].tokens:,.0f}", f"through {len(layers)} layers"),
        ("Mean CV of use", f"{fmean(la.cv for la in layers):.2f}", "0 is even use"),
        ("Busiest expert", f"x{worst.max_over_mean:.1f}", f"of the mean, in layer {worst.layer}"),
        ("Never seen", f"{unseen} of {experts}", "experts"),
    ]
    if after:
        mean = f"{fmean(la.cv for la in after):.2f}"
        cards.insert(2, ("Mean CV, pruned", mean, "over the experts that are left"))
    return cards
