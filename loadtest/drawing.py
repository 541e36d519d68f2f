"""The figures of loadtest.html.

Colours are of middle lightness, so that they stand out on a white and on a dark page, and nothing
is told by colour alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import plotly.graph_objects as go
from markupsafe import Markup

from loadtest.metrics import Record, known
from loadtest.results import CompareResult, Ratio
from loadtest.server_metrics import Sample
from loadtest.table import SHOWN

_COLOURS = ("#3a86d0", "#c4761b", "#2b9a74", "#b8578f", "#7d8590", "#8d8a1f", "#4f9db8", "#6f7fd8")
_DASHES = ("solid", "dash", "dot", "dashdot")
_SYMBOLS = ("circle", "diamond", "square", "triangle-up")
_PERCENTS = np.concatenate([np.linspace(0, 90, 46), np.linspace(90.5, 100, 20)])


@dataclass(frozen=True, slots=True)
class Figure:
    """A drawing, its heading and what to say to those who do not see it."""

    title: str
    drawing: go.Figure
    label: str

    def json(self) -> Markup:
        """Data and layout as JSON that no HTML parser can leave early."""
        text = str(self.drawing.to_json())
        for sign in "<>&":
            text = text.replace(sign, f"\\u{ord(sign):04x}")
        return Markup(text)


def _laid_out(drawing: go.Figure, height: int, **more: Any) -> go.Figure:
    axes = {"automargin": True, "fixedrange": True, "zeroline": False, "gridcolor": "#8884"}
    drawing.update_layout(
        height=height,
        margin={"l": 8, "r": 8, "t": 24, "b": 8},
        font={"family": "system-ui, sans-serif", "size": 13},
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        dragmode=False,
        legend={"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom"},
        **more,
    )
    drawing.update_xaxes(**axes)
    drawing.update_yaxes(**axes)
    return drawing


def ratio_figures(result: CompareResult) -> list[Figure]:
    """The ratios of each candidate, with their intervals; of one without any no figure."""
    found = [_ratios(result, side) for side in result.candidates]
    return [figure for figure in found if figure.drawing.data]


def _ratios(result: CompareResult, side: str) -> Figure:
    drawing = go.Figure()
    shown = [m for m in SHOWN if any(r.metric == m for r in result.ratios)]
    for number, users in enumerate(result.settings.users):
        found = [r for metric in shown if (r := result.ratio(metric, users, side)) is not None]
        offset = 0.18 * (number - (len(result.settings.users) - 1) / 2)
        if found:
            drawing.add_trace(_dots(found, shown, users, offset, number))
    drawing.add_vline(x=1, line={"color": "#7d8590", "width": 2})
    names = [SHOWN[metric][0] for metric in shown]
    drawing.update_yaxes(
        tickvals=list(range(len(shown))), ticktext=names, range=[len(shown) - 0.5, -0.5]
    )
    drawing.update_xaxes(title=f"{side} / base, 95 % interval")
    said = (f"{r.metric} at {r.users} users {r.median:.2f}" for r in result.ratios if r.users)
    return Figure(
        f"Ratios, {side} against base", _laid_out(drawing, 46 * len(shown) + 110), "; ".join(said)
    )


def _dots(
    ratios: Sequence[Ratio], shown: Sequence[str], users: int, offset: float, number: int
) -> go.Scatter:
    def ends(ratio: Ratio) -> tuple[float, float]:
        if ratio.low is None or ratio.high is None:
            return 0.0, 0.0
        return max(0.0, ratio.median - ratio.low), max(0.0, ratio.high - ratio.median)

    below, above = zip(*map(ends, ratios), strict=True)
    name = f"{users} user{'s' if users != 1 else ''}"
    return go.Scatter(
        x=[r.median for r in ratios],
        y=[shown.index(r.metric) + offset for r in ratios],
        error_x={"array": list(above), "arrayminus": list(below), "thickness": 1.5, "width": 4},
        mode="markers",
        name=name,
        marker={
            "symbol": _SYMBOLS[number % len(_SYMBOLS)],
            "size": 9,
            "color": _COLOURS[number % len(_COLOURS)],
        },
        hovertemplate=f"{name}: %{{x:.3f}}<extra></extra>",
    )


def curves(runs: Mapping[str, Sequence[Record]]) -> Figure | None:
    """Percentile curves of time to first token, one line a run; None where nothing was answered."""
    drawing = go.Figure()
    said = []
    for number, (name, records) in enumerate(runs.items()):
        values = list(known(r.ttft_ms for r in records if r.complete))
        if not values:
            continue
        drawing.add_trace(
            go.Scatter(
                x=_PERCENTS,
                y=np.percentile(values, _PERCENTS),
                mode="lines",
                name=name,
                line={
                    "color": _COLOURS[number % len(_COLOURS)],
                    "dash": _DASHES[number // len(_COLOURS) % len(_DASHES)],
                },
                hovertemplate="p%{x:.1f}: %{y:.1f} ms<extra></extra>",
            )
        )
        said.append(f"{name}: median {np.median(values):.0f} ms")
    if not said:
        return None
    drawing.update_xaxes(title="percentile")
    drawing.update_yaxes(title="time to first token, ms", rangemode="tozero")
    return Figure("Time to first token", _laid_out(drawing, 380), "; ".join(said))


def timeline(name: str, records: Sequence[Record]) -> Figure:
    """Requests under way and latencies over the time of a run."""
    begin = min(r.started for r in records)
    changes = sorted(
        [(r.started - begin, 1) for r in records]
        + [(r.started + r.ended - begin, -1) for r in records]
    )
    drawing = go.Figure()
    drawing.add_trace(
        go.Scatter(
            x=[when for when, _ in changes],
            y=np.cumsum([step for _, step in changes]),
            mode="lines",
            line={"shape": "hv", "color": "#7d8590", "width": 1.5},
            fill="tozeroy",
            fillcolor="rgba(125,133,144,0.2)",
            name="requests under way",
            yaxis="y2",
            hovertemplate="%{x:.1f} s: %{y} under way<extra></extra>",
        )
    )
    kinds: tuple[tuple[str, str, Callable[[Record], Any], Callable[[Record], bool]], ...] = (
        ("time to first token", "circle", lambda r: r.ttft_ms, lambda r: r.complete),
        ("end to end", "diamond", lambda r: r.e2e_ms, lambda r: r.complete),
        ("failed", "x", lambda r: r.e2e_ms, lambda r: r.error is not None),
        ("cut or cancelled", "triangle-up", lambda r: r.e2e_ms, lambda r: r.cut or r.cancelled),
    )
    colours = (_COLOURS[0], _COLOURS[2], "#cf3f3f", _COLOURS[1])
    for (title, symbol, value, chosen), colour in zip(kinds, colours, strict=True):
        mine = [r for r in records if chosen(r)]
        if mine:
            drawing.add_trace(
                go.Scatter(
                    x=[r.started - begin for r in mine],
                    y=[value(r) for r in mine],
                    mode="markers",
                    name=title,
                    marker={"symbol": symbol, "size": 6, "color": colour},
                    hovertemplate=f"{title}, %{{x:.1f}} s: %{{y:.0f}} ms<extra></extra>",
                )
            )
    drawing.update_layout(
        yaxis2={"overlaying": "y", "side": "right", "title": "requests under way"}
    )
    drawing.update_xaxes(title="start of the request, s")
    drawing.update_yaxes(title="ms", rangemode="tozero", selector={"overlaying": None})
    _laid_out(drawing, 360)
    drawing.update_layout(yaxis2={"showgrid": False, "rangemode": "tozero", "tickformat": ".0f"})
    label = f"{len(records)} requests in {changes[-1][0]:.0f} s"
    return Figure(f"Over time: {name}", drawing, label)


def server(name: str, samples: Sequence[Sample]) -> Figure:
    """What the server said of itself over the time of a run."""
    begin = samples[0].at
    drawing = go.Figure()
    lines: tuple[tuple[str, str, float, Callable[[Sample], float | None]], ...] = (
        ("requests running", "y", 1.0, lambda s: s.running),
        ("requests waiting", "y", 1.0, lambda s: s.waiting),
        ("KV cache in use, %", "y2", 100.0, lambda s: s.kv_used),
    )
    for number, (title, axis, unit, value) in enumerate(lines):
        found = [(s.at - begin, unit * v) for s in samples if (v := value(s)) is not None]
        if found:
            drawing.add_trace(
                go.Scatter(
                    x=[when for when, _ in found],
                    y=[v for _, v in found],
                    mode="lines",
                    name=title,
                    yaxis=axis,
                    line={"color": _COLOURS[number], "dash": _DASHES[number], "width": 1.5},
                    hovertemplate=f"%{{x:.0f}} s: %{{y:.1f}} {title}<extra></extra>",
                )
            )
    drawing.update_xaxes(title="seconds")
    drawing.update_yaxes(title="requests", rangemode="tozero")
    _laid_out(drawing, 300)
    drawing.update_layout(
        yaxis2={"overlaying": "y", "side": "right", "title": "%", "range": [0, 100]}
        | {"showgrid": False}
    )
    label = f"{len(samples)} samples in {samples[-1].at - begin:.0f} s"
    return Figure(f"The server: {name}", drawing, label)
