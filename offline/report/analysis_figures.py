"""The figures of `vmprune analyze`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean

import plotly.graph_objects as go

from offline.report.drawing import COLOURS, Figure, axis, cv_by_layer, layout_of
from offline.report.heatmap import COLOUR_BAR, DEEP, PALE, crossed, grid_layout
from offline.results.analysis import Analysis, CoActivation, LayerUse, Numbers

Column = Mapping[int, float]  # expert -> value
_BASE, _AFTER = COLOURS["base"], COLOURS["eep"]
_MIDDLE = "#ffffff"  # of scales around a middle value
_WARM = "#a8501f"


def figures_of(analysis: Analysis) -> dict[str, Figure]:
    """Draw everything that was found, by name of the figure."""
    width = max(max(layer.experts, default=0) for layer in analysis.layers) + 1
    drawn = [use_map(analysis, width), balance(analysis), weights(analysis)]
    if analysis.after:
        drawn.append(_map("use-after", "after pruning", _shares(analysis.after), width))
    drawn.append(_map("coverage", "of the vocabulary", _coverage(analysis.layers), width))
    for number, domain in enumerate(analysis.by_domain[0].shares if analysis.by_domain else ()):
        columns = {d.layer: _column(range(width), d.shares[domain]) for d in analysis.by_domain}
        plain = domain.replace("<", "").replace("&", "")  # a file's name: no markup in a title
        drawn.append(_map(f"domain-{number}", f"of {plain}", columns, width))
    drawn += [co_activation_map(matrix) for matrix in analysis.co_activation]
    if analysis.overlap is not None:
        drawn.append(agreement(analysis.overlap.words, analysis.overlap.jaccard))
    return {figure.name: figure for figure in drawn}


def use_map(analysis: Analysis, width: int) -> Figure:
    """Layers x experts: share of the layer's assignments; what the map drops is crossed out."""
    columns = _shares(analysis.layers)
    figure = _map("use", "of the layer's assignments", columns, width)
    kept = {fate.layer: fate.kept for fate in analysis.fates}
    cells = [
        (place, expert, 100 * column[expert])
        for place, (layer, column) in enumerate(columns.items())
        for expert in column
        if kept.get(layer) is not None and expert not in (kept[layer] or ())
    ]
    if cells:
        top = _top(columns, width)
        figure.drawing.add_trace(crossed(cells, top, len(columns)))
    return figure


def balance(analysis: Analysis) -> Figure:
    """Coefficient of variation of each layer, before and after."""
    sides = [("base", analysis.layers, _BASE, "circle")]
    if analysis.after:
        sides.append(("pruned", analysis.after, _AFTER, "diamond"))
    drawing = cv_by_layer(sides, showlegend=len(sides) > 1)
    said = "; ".join(f"{name} {fmean(la.cv for la in layers):.2f}" for name, layers, _, _ in sides)
    return Figure("balance", drawing, f"Coefficient of variation of use per layer, mean: {said}.")


def weights(analysis: Analysis) -> Figure:
    """Histogram of the routing weights of all layers together, before and after."""
    sides = [("base", analysis.layers, _BASE, "")]
    if analysis.after:
        sides.append(("pruned", analysis.after, _AFTER, "/"))
    bins = len(analysis.layers[0].weight_bins)
    bars = []
    for name, layers, colour, pattern in sides:
        mean = [100 * fmean(values) for values in zip(*_bins(layers), strict=True)]
        bars.append(
            go.Bar(
                x=[(i + 0.5) / bins for i in range(bins)],
                y=mean,
                name=name,
                marker={"color": colour, "pattern": {"shape": pattern}},
                hovertemplate="weight about %{x:.3f}: %{y:.1f}%<extra></extra>",
            )
        )
    drawing = go.Figure(bars)
    drawing.update_layout(
        **layout_of(300, showlegend=len(sides) > 1, bargap=0.1),
        xaxis=axis("routing weight", range=[0, 1]),
        yaxis=axis("% of the weights", rangemode="tozero"),
    )
    said = "; ".join(f"{name} {_mean_weight(layers):.2f}" for name, layers, _, _ in sides)
    return Figure("weights", drawing, f"Histogram of routing weights, mean of layers: {said}.")


def co_activation_map(matrix: CoActivation) -> Figure:
    """One layer's co-activation: how much more often than by their use alone."""
    names = [str(expert) for expert in matrix.experts]
    label = (
        f"Co-activation of {len(names)} experts of layer {matrix.layer}: tokens that chose both, "
        "relative to what their use alone makes likely."
    )
    table = [list(row) for row in matrix.lift]
    return _square(
        f"co-activation-{matrix.layer}",
        names,
        table,
        label,
        said="experts %{y} and %{x}: %{z:.2f} times as often<extra></extra>",
        colours={"zmin": 0, "zmid": 1, "zmax": 2, "colorscale": _around()},
        title="times as often as by use alone",
        cell=22,
    )


def agreement(words: Sequence[str], jaccard: Sequence[Numbers]) -> Figure:
    """How much of what one criterion drops the others drop too."""
    label = f"Overlap of what {len(words)} criteria would drop, Jaccard index of every two."
    return _square(
        "overlap",
        words,
        [list(row) for row in jaccard],
        label,
        said="%{y} and %{x}: %{z:.2f}<extra></extra>",
        colours={"zmin": 0, "zmax": 1, "colorscale": [[0, PALE], [1, DEEP]]},
        title="Jaccard index",
        cell=26,
    )


def _square(
    name: str,
    names: Sequence[str],
    table: list[list[float | None]],
    label: str,
    *,
    said: str,
    colours: dict[str, object],
    title: str,
    cell: int,
) -> Figure:
    size = min(900, max(220, cell * len(names)))
    bar = {"title": {"text": title, "side": "top"}, **COLOUR_BAR}
    drawing = go.Figure(
        go.Heatmap(
            z=table,
            x=list(names),
            y=list(names),
            xgap=1,
            ygap=1,
            hovertemplate=said,
            colorbar=bar,
            **colours,
        )
    )
    drawing.update_layout(
        **layout_of(size + 150, showlegend=False),
        xaxis=axis("", type="category", showgrid=False),
        yaxis=axis("", type="category", autorange="reversed", showgrid=False),
    )
    return Figure(name, drawing, label, min_width=min(900, size) + 120)


def _map(name: str, what: str, columns: Mapping[int, Column], width: int) -> Figure:
    """Layers x experts, values as percent; an expert that is not there stays empty."""
    layers = list(columns)
    top = _top(columns, width)
    values = [
        [100 * columns[n][e] if e in columns[n] else None for n in layers] for e in range(width)
    ]
    drawing = go.Figure(
        go.Heatmap(
            z=values,
            zmin=0,
            zmax=top,
            colorscale=[[0, PALE], [1, DEEP]],
            xgap=1,
            ygap=1,
            text=[[str(n) for n in layers] for _ in range(width)],
            hovertemplate=f"layer %{{text}}, expert %{{y}}<br>%{{z:.1f}}% {what}<extra></extra>",
            colorbar={"title": {"text": f"% {what}", "side": "top"}, **COLOUR_BAR},
        )
    )
    layout, min_width = grid_layout(layers, width)
    drawing.update_layout(**layout)
    label = f"Heat map of {len(layers)} layers and up to {width} experts per layer: % {what}."
    return Figure(name, drawing, label, min_width=min_width)


def _top(columns: Mapping[int, Column], width: int) -> float:
    """The value of the deepest colour: one busy expert must not turn all others pale."""
    values = [100 * value for column in columns.values() for value in column.values()]
    highest = max(values, default=0) or 1
    return min(highest, max(400 / width, 4 * fmean(values)))


def _shares(layers: Sequence[LayerUse]) -> dict[int, Column]:
    return {layer.layer: _column(layer.experts, layer.share) for layer in layers}


def _coverage(layers: Sequence[LayerUse]) -> dict[int, Column]:
    return {layer.layer: _column(layer.experts, layer.coverage) for layer in layers}


def _column(experts: Sequence[int], values: Numbers) -> Column:
    return dict(zip(experts, values, strict=False))


def _bins(layers: Sequence[LayerUse]) -> list[Numbers]:
    return [layer.weight_bins for layer in layers]


def _mean_weight(layers: Sequence[LayerUse]) -> float:
    return fmean(layer.mean_weight or 0.0 for layer in layers)


def _around() -> list[list[object]]:
    return [[0, _WARM], [0.5, _MIDDLE], [1, DEEP]]
