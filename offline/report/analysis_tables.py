"""The tables of `vmprune analyze` as strings; page and terminal only lay them out."""

from __future__ import annotations

from collections.abc import Sequence

from offline.report import words
from offline.report.tables import Table
from offline.results.analysis import Analysis, LayerUse

USE_HEAD = ("layer", "tokens", "CV", "max / mean", "entropy", "of highest", "unseen experts")


def use_row(layer: LayerUse) -> tuple[str, ...]:
    """One layer's balance: the columns of ``USE_HEAD``."""
    return (
        str(layer.layer),
        f"{layer.tokens:,.0f}",
        f"{layer.cv:.2f}",
        f"{layer.max_over_mean:.2f}",
        f"{layer.entropy:.2f}",
        words.percent(layer.entropy_share),
        words.ids(layer.unseen) or "none",
    )


def use_table(layers: Sequence[LayerUse], whose: str) -> Table:
    """How evenly each layer uses its experts."""
    rows = tuple(use_row(layer) for layer in layers)
    return Table(f"Use of the experts, {whose}", USE_HEAD, rows, frozenset({0, 6}))


def router_table(analysis: Analysis) -> Table:
    """What is left of a layer's numbers: weights, coverage, the strongest pair, domains."""
    divergence = {domain.layer: domain.divergence for domain in analysis.by_domain}
    rows = []
    for layer in analysis.layers:
        pair = layer.strongest_pair
        rows.append(
            (
                str(layer.layer),
                words.number(layer.mean_weight, 2),
                f"{words.percent(min(layer.coverage))} to {words.percent(max(layer.coverage))}",
                words.percent(layer.coverage_of_all),
                f"{pair.experts[0]} and {pair.experts[1]}" if pair else "-",
                f"{pair.lift:.2f}" if pair else "-",
                words.number(divergence.get(layer.layer), 3),
            )
        )
    pairs = ("strongest pair", "times as often")
    head = ("layer", "mean weight", "coverage", "of all", *pairs, "divergence of domains")
    caption = "Router, vocabulary, co-activation and domains, base"
    return Table(caption, head, tuple(rows), frozenset({0, 4}))


def fates_table(analysis: Analysis) -> Table | None:
    """What the map keeps, and how much of the base's use that was."""
    rows = tuple(
        (
            str(fate.layer),
            words.ids(fate.kept) if fate.kept is not None else f"merged into {fate.num_kept}",
            "-" if fate.kept_share is None else words.percent(fate.kept_share),
        )
        for fate in analysis.fates
    )
    head = ("layer", "kept", "assignments to kept experts")
    return Table("What the map keeps", head, rows, frozenset({0, 1})) if rows else None


def overlap_table(analysis: Analysis) -> Table | None:
    """The overlap of every two criteria in numbers."""
    found = analysis.overlap
    if found is None:
        return None
    rows = tuple(
        (word, *(f"{value:.2f}" for value in row))
        for word, row in zip(found.words, found.jaccard, strict=True)
    )
    return Table("Overlap of what criteria would drop", ("", *found.words), rows)


def changes_table(analysis: Analysis) -> Table | None:
    """How pruning changes the order in which criteria would drop the survivors."""
    rows = tuple(
        (
            change.word,
            words.number(change.rank_correlation, 2),
            words.number(min(known, default=None), 2),
            words.number(change.next_overlap, 2),
        )
        for change in analysis.changes
        for known in [[c.rank_correlation for c in change.layers if c.rank_correlation is not None]]
    )
    head = ("criterion", "rank correlation", "lowest layer's", "overlap of the next half")
    caption = "Survivors by the base's scores and by the pruned model's, mean of the layers"
    return Table(caption, head, rows) if rows else None


def data_table(analysis: Analysis) -> Table | None:
    """The text that was scored, named so that it can be found again."""
    rows = tuple((d.name, str(d.count), d.sha256) for d in analysis.provenance.data)
    head = ("domain", "sequences", "identity")
    return Table("Text", head, rows, frozenset({0, 2})) if rows else None
