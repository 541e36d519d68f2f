"""The figures of the report, as plotly figures.

Colours are of middle lightness, so that they stand out on a white and on a dark page; nothing
is told by colour alone. Text and grid take the page's colours by CSS, which also serves print.
"""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from typing import Any

import plotly.graph_objects as go
from markupsafe import Markup

from offline.report import words
from offline.report.inputs import Ratio, Serving
from offline.result import LayerOutcome, Quality, RunResult

COLOURS = {"base": "#7d8590", "random": "#c4761b", "frequency": "#2b9a74", "eep": "#3a86d0"}
_PATTERNS = {"base": "", "random": "/", "frequency": ".", "eep": "x"}
_DASHES = {"base": "solid", "random": "dot", "frequency": "dash", "eep": "dashdot"}
_SYMBOL_COLOURS = {
    "circle": COLOURS["eep"],
    "diamond": COLOURS["random"],
    "square": COLOURS["frequency"],
    "triangle-up": COLOURS["base"],
}
_SYMBOLS = tuple(_SYMBOL_COLOURS)
_PALE, _DEEP = "#eef3f9", "#0b3a75"
_FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'DejaVu Sans', sans-serif"
_MAX_TICKS = 16
_MIN_CELL = 7  # pixels: below this the heat map scrolls rather than shrinks


@dataclass(frozen=True, slots=True)
class Figure:
    """A drawing and what to say to those who do not see it."""

    name: str
    drawing: go.Figure
    label: str
    min_width: int = 0

    def json(self) -> Markup:
        """Return data and layout as JSON that no HTML parser can leave early."""
        text = str(self.drawing.to_json())
        for sign in "<>&":
            text = text.replace(sign, f"\\u{ord(sign):04x}")
        return Markup(text)


def _layout(height: int, **more: Any) -> dict[str, Any]:
    return {
        "height": height,
        "margin": {"l": 8, "r": 8, "t": 8, "b": 8},
        "font": {"family": _FONT, "size": 13},
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "dragmode": False,  # a finger that scrolls the page must not zoom
        "legend": {"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom"},
        **more,
    }


def _axis(title: str, **more: Any) -> dict[str, Any]:
    return {
        "title": {"text": title, "standoff": 8},
        "automargin": True,
        "fixedrange": True,
        "zeroline": False,
        "gridcolor": "#8884",
        **more,
    }


def heat_map(result: RunResult) -> Figure:
    """Layers x experts: the base's usage as colour, dropped experts crossed out."""
    layers = result.layers
    most = max((layer.num_experts for layer in layers), default=0)
    shares = [_shares(layer) for layer in layers]
    columns = [[*row, *[None] * (most - len(row))] for row in shares]
    top = max((s for row in shares for s in row if s is not None), default=0) or 1
    heat = go.Heatmap(
        z=[list(row) for row in zip(*columns, strict=True)],
        zmin=0,
        zmax=top,
        colorscale=[[0, _PALE], [1, _DEEP]],
        xgap=1,
        ygap=1,
        customdata=[[_fate(layer, e) for layer in layers] for e in range(most)],
        text=[[str(layer.layer) for layer in layers] for _ in range(most)],
        hovertemplate="layer %{text}, expert %{y}<br>%{z:.1f}% of the layer's tokens"
        "<br>%{customdata}<extra></extra>",
        colorbar={"title": {"text": "tokens, %", "side": "right"}, "thickness": 12, "len": 1},
    )
    height = min(1400, max(200, 26 * most if most <= 16 else 10 * most)) + 60
    step = -(-len(layers) // _MAX_TICKS) or 1
    ticks = list(range(0, len(layers), step))
    drawing = go.Figure([heat, _crosses(layers, shares, top)])
    drawing.update_layout(
        **_layout(height, showlegend=False),
        xaxis=_axis(
            "decoder layer",
            tickvals=ticks,
            ticktext=[str(layers[i].layer) for i in ticks],
            showgrid=False,
        ),
        yaxis=_axis("expert", autorange="reversed", showgrid=False, dtick=max(1, -(-most // 16))),
    )
    dropped = sum(layer.num_experts - len(layer.kept) for layer in layers if layer.kept)
    label = (
        f"Heat map of {len(layers)} layers and up to {most} experts per layer: share of each "
        f"layer's tokens per expert; {dropped} dropped experts are crossed out. "
        "The table below it lists the kept experts of every layer."
    )
    return Figure("heat-map", drawing, label, min_width=_MIN_CELL * len(layers) + 110)


def _shares(layer: LayerOutcome) -> list[float | None]:
    total = sum(layer.usage)
    known = [100 * n / total for n in layer.usage] if total else []
    return [known[e] if e < len(known) else None for e in range(layer.num_experts)]


def _fate(layer: LayerOutcome, expert: int) -> str:
    if expert >= layer.num_experts:
        return ""
    if not layer.kept:
        return "merged"
    return "kept" if expert in layer.kept else "dropped"


def _crosses(
    layers: tuple[LayerOutcome, ...], shares: list[list[float | None]], top: float
) -> go.Scatter:
    cells = [
        (column, expert, shares[column][expert] or 0.0)
        for column, layer in enumerate(layers)
        for expert in range(layer.num_experts)
        if _fate(layer, expert) == "dropped"
    ]
    return go.Scatter(
        x=[column for column, _, _ in cells],
        y=[expert for _, expert, _ in cells],
        mode="markers",
        name="dropped",
        hoverinfo="skip",
        marker={
            "symbol": "x-thin",
            "size": 5 if len(layers) > 40 else 7,
            # an open cross is all line: dark on pale cells, pale on deep ones
            "line": {
                "width": 1.6,
                "color": ["#ffffff" if s > 0.5 * top else "#1b1f24" for _, _, s in cells],
            },
        },
    )


def search_progress(result: RunResult) -> Figure:
    """Fitness of every candidate, the best so far, and what it has to beat."""
    points = result.search
    x = [p.evaluation for p in points]
    drawing = go.Figure(
        [
            go.Scatter(
                x=x,
                y=[100 * p.fitness for p in points],
                mode="markers",
                name="candidate",
                marker={"color": COLOURS["eep"], "size": 6, "opacity": 0.7},
                hovertemplate="evaluation %{x}<br>%{y:.1f}%<extra></extra>",
            ),
            go.Scatter(
                x=x,
                y=[100 * p.best for p in points],
                mode="lines",
                name="best so far",
                line={"color": COLOURS["eep"], "width": 2.5, "shape": "hv"},
                hovertemplate="best after %{x}: %{y:.1f}%<extra></extra>",
            ),
            *_baselines(result, x[0], x[-1]),
        ]
    )
    drawing.update_layout(
        **_layout(400),
        xaxis=_axis("evaluation", range=[x[0] - 1, x[-1] + 1]),
        yaxis=_axis("accuracy, %"),
    )
    best = max(points, key=lambda p: p.fitness)
    label = (
        f"Search progress: {len(points)} candidates, best fitness {words.percent(best.fitness)} "
        f"first reached at evaluation {best.evaluation}, "
        f"first candidate {words.percent(points[0].fitness)}."
    )
    return Figure("search-progress", drawing, label)


def _baselines(result: RunResult, first: int, last: int) -> list[go.Scatter]:
    """Horizontal lines; one measured on other items than the candidates says so in its name."""
    lines = []
    initial = result.provenance.settings.get("initial")
    if isinstance(initial, int) and 1 < initial <= len(result.search):
        mean = statistics.fmean(p.fitness for p in result.search[:initial])
        lines.append((f"mean of the {initial} random starts", mean, "random"))
    for variant in ("base", "random", "frequency"):
        same = result.quality_of(variant, "search")
        found = same or result.quality_of(variant)
        if found is not None and not (variant == "random" and lines and same is None):
            where = "" if same else ", held-out"
            lines.append((words.VARIANTS[variant] + where, found.accuracy, variant))
    return [
        go.Scatter(
            x=[first - 1, last + 1],
            y=[100 * value] * 2,
            mode="lines",
            name=f"{name} {words.percent(value)}",
            line={"color": COLOURS[variant], "width": 1.8, "dash": _DASHES[variant]},
            hoverinfo="name",
        )
        for name, value, variant in lines
    ]


def quality_bars(result: RunResult) -> Figure:
    """Held-out accuracy with error bars; for a mean over maps, a dot for each of them."""
    measured = [q for q in result.quality if q.split == "test"]
    bars = [_bar(q) for q in measured]
    dots = [
        go.Scatter(
            x=[words.VARIANTS[q.variant]] * len(q.each),
            y=[100 * value for value in q.each],
            mode="markers",
            marker={"symbol": "circle-open", "size": 7, "color": "#1b1f24"},
            hovertemplate="one map: %{y:.1f}%<extra></extra>",
        )
        for q in measured
        if len(q.each) > 1
    ]
    drawing = go.Figure([*bars, *dots])
    drawing.update_layout(
        **_layout(360, showlegend=False, bargap=0.45),
        xaxis=_axis("", showgrid=False),
        yaxis=_axis("held-out accuracy, %", rangemode="tozero"),
    )
    said = (
        f"{words.VARIANTS[q.variant]} {words.percent(q.accuracy)} ({words.interval(q.low, q.high)})"
        for q in measured
    )
    return Figure("quality", drawing, f"Held-out accuracy with 95% intervals: {'; '.join(said)}.")


def _bar(q: Quality) -> go.Bar:
    return go.Bar(
        x=[words.VARIANTS[q.variant]],
        y=[100 * q.accuracy],
        error_y={
            "array": [100 * (q.high - q.accuracy)],
            "arrayminus": [100 * (q.accuracy - q.low)],
            "thickness": 2,
            "width": 7,
        },
        marker={
            "color": COLOURS[q.variant],
            "pattern": {"shape": _PATTERNS[q.variant], "size": 7, "solidity": 0.25},
        },
        hovertemplate=f"%{{x}}: %{{y:.1f}}% ({words.interval(q.low, q.high)})<extra></extra>",
    )


def serving_ratios(serving: Serving) -> Figure | None:
    """Ratios of throughput and latencies, a symbol per number of users; None without any."""
    shown = [r for r in serving.ratios if r.users is not None and r.higher_is_better is not None]
    metrics = list(dict.fromkeys(r.metric for r in shown))
    users = sorted({r.users for r in shown if r.users is not None})
    if not shown:
        return None
    drawing = go.Figure()
    for index, count in enumerate(users):
        mine = [r for r in shown if r.users == count]
        offset = 0.22 * (index - (len(users) - 1) / 2)
        drawing.add_traces(
            _ratio_dots(mine, metrics, count, offset, _SYMBOLS[index % len(_SYMBOLS)])
        )
    drawing.add_vline(x=1, line={"color": "#7d8590", "width": 2})
    names = [_ratio_name(next(r for r in shown if r.metric == m)) for m in metrics]
    drawing.update_layout(
        **_layout(52 * len(metrics) + 110),
        xaxis=_axis("pruned / base"),
        yaxis=_axis(
            "",
            tickvals=list(range(len(metrics))),
            ticktext=names,
            range=[len(metrics) - 0.5, -0.5],
        ),
    )
    said = (
        f"{words.METRICS[r.metric][0] if r.metric in words.METRICS else r.metric} at {r.users} "
        f"users {r.median:.2f}"
        for r in shown
    )
    return Figure("serving", drawing, f"Ratios pruned to base: {'; '.join(said)}.")


def _ratio_name(ratio: Ratio) -> str:
    known = words.METRICS.get(ratio.metric)
    # an unknown metric's name comes from a file: no markup in it
    name = known[1] if known else ratio.metric.replace("<", "").replace("&", "")
    return f"{name} {'↑' if ratio.higher_is_better else '↓'}"


def _ratio_dots(
    ratios: list[Ratio], metrics: list[str], users: int, offset: float, symbol: str
) -> list[go.Scatter]:
    colour = _SYMBOL_COLOURS[symbol]
    rows = [metrics.index(r.metric) + offset for r in ratios]
    each = [(v, row) for r, row in zip(ratios, rows, strict=True) for v in r.per_round]
    name = f"{users} user{'s' if users != 1 else ''}"
    return [
        go.Scatter(
            x=[r.median for r in ratios],
            y=rows,
            mode="markers",
            name=name,
            marker={"symbol": symbol, "size": 11, "color": colour},
            hovertemplate=f"{name}: %{{x:.2f}}<extra></extra>",
        ),
        go.Scatter(
            x=[v for v, _ in each],
            y=[row for _, row in each],
            mode="markers",
            showlegend=False,
            marker={"symbol": symbol + "-open", "size": 6, "color": colour},
            hovertemplate=f"{name}, one round: %{{x:.2f}}<extra></extra>",
        ),
    ]
