"""The figures of the report that have axes: search, quality, serving."""

from __future__ import annotations

import statistics

import plotly.graph_objects as go
from pydantic import JsonValue

from offline.report import words
from offline.report.drawing import COLOURS, Figure, axis, layout_of
from offline.report.inputs import Ratio, Serving
from offline.results.compression import Quality, RunResult, SearchPoint

_PATTERNS = {
    "base": "",
    "random": "/",
    "frequency": ".",
    "soft_activation": "-",
    "naee": "|",
    "oneshot": ".",
    "eep_prune": "+",
    "eep": "x",
}
_DASHES = {"base": "solid", "random": "dot", "frequency": "dash"}
_SYMBOL_COLOURS = {
    "circle": COLOURS["eep"],
    "diamond": COLOURS["random"],
    "square": COLOURS["frequency"],
    "triangle-up": COLOURS["base"],
}
_SYMBOLS = tuple(_SYMBOL_COLOURS)


def _colour(variant: str) -> str:
    """Return a variant's colour; criteria have that of one-shot."""
    return COLOURS.get(variant, COLOURS["oneshot"])


def search_progress(result: RunResult) -> Figure:
    """Fitness of every candidate, the best so far, and what it has to beat."""
    points = result.search
    x = [p.evaluation for p in points]
    drawing = go.Figure(
        [
            _candidates([p for p in points if p.complete], "candidate", "circle"),
            _candidates([p for p in points if not p.complete], "dropped by racing", "x-thin-open"),
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
        **layout_of(400),
        xaxis=axis("evaluation", range=[x[0] - 1, x[-1] + 1]),
        yaxis=axis(f"{result.fitness}, {words.UNITS.get(result.fitness, '')}"),
    )
    merging = next((p.evaluation for p in points if p.phase == "merge"), None)
    if merging is not None and merging > x[0]:
        drawing.add_vline(
            x=merging - 0.5,
            line={"color": "#7d8590", "width": 1.5, "dash": "dot"},
            annotation_text="merging begins",
        )
    best = max(points, key=lambda p: (p.complete, p.fitness))
    label = (
        f"Search progress: {len(points)} candidates, {sum(not p.complete for p in points)} of them "
        f"dropped by racing, best fitness {words.percent(best.fitness)} first reached at "
        f"evaluation {best.evaluation}, "
        f"first candidate {words.percent(points[0].fitness)}."
    )
    return Figure("search-progress", drawing, label)


def _candidates(points: list[SearchPoint], name: str, symbol: str) -> go.Scatter:
    return go.Scatter(
        x=[p.evaluation for p in points],
        y=[100 * p.fitness for p in points],
        customdata=[p.items for p in points],
        mode="markers",
        name=name,
        marker={"color": COLOURS["eep"], "size": 6, "opacity": 0.7, "symbol": symbol},
        hovertemplate="evaluation %{x}<br>%{y:.1f} over %{customdata} items<extra></extra>",
    )


def _initial(result: RunResult) -> JsonValue:
    """Return how many candidates the search drew at random; results of version 0.1 say it flat."""
    settings = result.provenance.settings
    search = settings.get("search")
    return search.get("num_initial") if isinstance(search, dict) else settings.get("initial")


def _baselines(result: RunResult, first: int, last: int) -> list[go.Scatter]:
    """Horizontal lines; one measured on other items than the candidates says so in its name."""
    lines = []
    initial = _initial(result)
    if isinstance(initial, int) and 1 < initial <= len(result.search):
        mean = statistics.fmean(p.fitness for p in result.search[:initial])
        lines.append((f"mean of the {initial} random starts", mean, "random"))
    for variant in ("base", "random", "frequency"):
        same = result.quality_of(variant, "search")
        found = same or result.quality_of(variant)
        if found is not None and not (variant == "random" and lines and same is None):
            where = "" if same else ", held-out"
            lines.append((words.variant(variant) + where, found.accuracy, variant))
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
    several = len({(q.task, q.measure) for q in measured}) > 1
    dots = [
        go.Scatter(
            x=[position + 0.36] * len(q.each),  # beside the bar, clear of its whisker
            y=[100 * value for value in q.each],
            mode="markers",
            marker={
                "symbol": "circle-open",
                "size": 6,
                "color": _colour(q.variant),
            },
            hovertemplate="one map: %{y:.1f}%<extra></extra>",
        )
        for position, q in enumerate(measured)
        if len(q.each) > 1
    ]
    bars = [_bar(position, q) for position, q in enumerate(measured)]
    drawing = go.Figure([*bars, *dots])
    drawing.update_layout(
        **layout_of(360, showlegend=False, bargap=0.45),
        xaxis=axis(
            "",
            showgrid=False,
            tickvals=list(range(len(measured))),
            ticktext=[_bar_name(q, several) for q in measured],
        ),
        yaxis=axis("on held-out items, %", rangemode="tozero"),
    )
    said = (
        f"{_bar_name(q, several, ' on ')} {words.percent(q.accuracy)} "
        f"({words.interval(q.low, q.high)})"
        for q in measured
    )
    label = f"Held-out accuracy with 95% intervals: {'; '.join(said)}."
    return Figure("quality", drawing, label, min_width=84 * len(measured))


def _bar_name(q: Quality, several: bool, between: str = "<br>") -> str:
    name = words.variant(q.variant)
    return f"{name}{between}{words.task(q)}" if several else name


def _bar(position: int, q: Quality) -> go.Bar:
    return go.Bar(
        x=[position],
        y=[100 * q.accuracy],
        error_y={
            "array": [100 * (q.high - q.accuracy)],
            "arrayminus": [100 * (q.accuracy - q.low)],
            "thickness": 2,
            "width": 7,
        },
        marker={
            "color": _colour(q.variant),
            "pattern": {"shape": _PATTERNS.get(q.variant, ""), "size": 7, "solidity": 0.25},
        },
        name=words.variant(q.variant),
        hovertemplate=f"%{{y:.1f}}% ({words.interval(q.low, q.high)})",
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
        **layout_of(52 * len(metrics) + 110),
        xaxis=axis("pruned / base"),
        yaxis=axis(
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
