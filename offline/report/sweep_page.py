"""`sweep.html`: a `SweepResult` on one page that needs no network."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import plotly.graph_objects as go

from offline.report import sweep_tables as tables
from offline.report import words
from offline.report.drawing import COLOURS, Figure, axis, layout_of
from offline.report.tables import pairs_table
from offline.report.template import fill
from offline.results.sweep import SweepPoint, SweepResult

SWEEP_PAGE = "sweep.html"
_GIB = 2**30
_OWN, _OTHER = COLOURS["eep"], COLOURS["random"]


def render(sweep: SweepResult) -> str:
    """Return the page."""
    return fill(
        SWEEP_PAGE,
        provenance=sweep.provenance,
        outcome=outcome(sweep),
        sweep=sweep,
        cards=key_figures(sweep),
        figures={"front": front_figure(sweep), "speed": speed_figure(sweep)},
        tables=tables,
        pairs_table=pairs_table,
    )


def outcome(sweep: SweepResult) -> str:
    """Say in one sentence what was found."""
    found = sweep.chosen
    if found is None or found.held_out is None:
        said = "no choice passes all gates" if sweep.judged else "no gates were given"
        count = f"{len(sweep.points)} choices were measured, {len(sweep.front)} are on the front"
        return f"{count}; {said}."
    return (
        f"{found.name} is the smallest of {len(sweep.points)} choices that passes all gates: "
        f"{words.gib(found.num_bytes)} ({words.change(sweep.base_bytes, found.num_bytes)}), "
        f"held-out accuracy {words.percent(found.held_out.value)} against the base's "
        f"{words.percent(sweep.base_held_out.value)}"
        + (f", {found.speed.ratio} times its tokens/s." if found.speed is not None else ".")
    )


def key_figures(sweep: SweepResult) -> list[tuple[str, str, str]]:
    """Return name, value and small print of the figures on top of the page."""
    base = sweep.base_held_out
    cards = [
        (
            "Choices",
            str(len(sweep.points)),
            f"{sum(not p.complete for p in sweep.points)} dropped early",
        ),
        ("Base", words.percent(base.value), f"{words.gib(sweep.base_bytes)}, {_interval(base)}"),
    ]
    if sweep.chosen is not None and sweep.chosen.held_out is not None:
        own = sweep.chosen.held_out
        small = f"{sweep.chosen.name}, {words.gib(sweep.chosen.num_bytes)}, {_interval(own)}"
        cards.append(("Smallest that passes", words.percent(own.value), small))
    return cards


def front_figure(sweep: SweepResult) -> Figure:
    """Draw quality against size: all choices, those measured again, and the front."""
    again = tables.again(sweep)
    others = [p for p in sweep.points if p.complete and p.held_out is None]
    dropped = [p for p in sweep.points if not p.complete]
    traces = [
        _cloud("search items", others, _OTHER, "circle-open"),
        _cloud("dropped early", dropped, _OTHER, "x-thin-open"),
        _measured("held out", again, _OWN),
        _line(sweep.front),
    ]
    drawing = go.Figure([trace for trace in traces if len(trace.x)])
    base = sweep.base_held_out
    drawing.add_hline(
        y=100 * base.value,
        line={"color": COLOURS["base"], "dash": "dot"},
        annotation={"text": "base", "font": {"size": 12}},
    )
    drawing.update_layout(
        **layout_of(440, clickmode="event", hovermode="closest"),
        xaxis=axis("GiB on disk"),
        yaxis=axis("accuracy, percent"),
    )
    said = "; ".join(
        f"{p.name} {words.gib(p.num_bytes)} {words.percent(p.held_out.value)}"
        for p in sweep.front
        if p.held_out is not None
    )
    return Figure("front", drawing, f"The front, smallest first: {said}", min_width=420)


def speed_figure(sweep: SweepResult) -> Figure:
    """Draw quality against tokens per second of what generated; circles grow with the size."""
    found: list[tuple[SweepPoint, Any, Any]] = [
        (p, p.held_out, p.speed.ratio) for p in tables.again(sweep) if p.speed is not None
    ]
    trace = _marks([p for p, _, _ in found], [own for _, own, _ in found])
    most = max((p.num_bytes for p, _, _ in found), default=1)
    trace.update(
        x=[ratio.value for _, _, ratio in found],
        error_x=_bars([ratio for _, _, ratio in found]),
        marker={"color": _OWN, "size": [8 + 16 * p.num_bytes / most for p, _, _ in found]},
        hovertemplate="%{text}: %{y:.1f}, %{x:.2f} times the tokens/s<extra></extra>",
    )
    drawing = go.Figure([trace])
    drawing.update_layout(
        **layout_of(360, clickmode="event", hovermode="closest", showlegend=False),
        xaxis=axis("tokens/s by the base's"),
        yaxis=axis("accuracy, percent"),
    )
    said = "; ".join(
        f"{p.name} {words.percent(own.value)} at {ratio.value:.2f}" for p, own, ratio in found
    )
    return Figure("speed", drawing, f"Accuracy by tokens per second: {said}", min_width=420)


def _cloud(name: str, points: Sequence[SweepPoint], colour: str, symbol: str) -> go.Scatter:
    return go.Scatter(
        x=[p.num_bytes / _GIB for p in points],
        y=[100 * p.search for p in points],
        text=[f"{p.name}, {p.items} items" for p in points],
        mode="markers",
        name=name,
        marker={
            "color": colour,
            "symbol": symbol,
            "size": 8,
            "line": {"width": 1.5, "color": colour},
        },
        hovertemplate="%{text}: %{y:.1f}<extra></extra>",
    )


def _measured(name: str, points: Sequence[SweepPoint], colour: str) -> go.Scatter:
    trace = _marks(points, [p.held_out for p in points])
    trace.update(
        x=[p.num_bytes / _GIB for p in points],
        name=name,
        marker={"color": colour, "symbol": "circle", "size": 10},
        hovertemplate="%{text}: %{y:.1f}<extra></extra>",
    )
    return trace


def _marks(points: Sequence[SweepPoint], quality: Sequence[Any]) -> go.Scatter:
    """Return marks at the qualities of points, with intervals; each leads to its command."""
    return go.Scatter(
        y=[100 * own.value for own in quality],
        error_y=_bars(quality, 100),
        text=[p.name for p in points],
        customdata=[tables.anchor(p.name) for p in points],
        mode="markers",
    )


def _bars(found: Sequence[Any], scale: float = 1) -> dict[str, Any]:
    """Return the bars of estimates' intervals; none where there is no interval."""
    return {
        "type": "data",
        "symmetric": False,
        "array": [scale * (e.high - e.value) if e.high is not None else 0 for e in found],
        "arrayminus": [scale * (e.value - e.low) if e.low is not None else 0 for e in found],
        "thickness": 1,
    }


def _line(points: Sequence[SweepPoint]) -> go.Scatter:
    found: list[tuple[SweepPoint, Any]] = [(p, p.held_out) for p in points if p.held_out]
    return go.Scatter(
        x=[p.num_bytes / _GIB for p, _ in found],
        y=[100 * own.value for _, own in found],
        mode="lines",
        name="front",
        line={"color": _OWN, "width": 1},
        hoverinfo="skip",
    )


def _interval(found: Any) -> str:
    return "" if found.low is None else words.interval(found.low, found.high)
