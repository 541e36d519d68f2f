"""The heat map of the report: which experts the base uses, and which are dropped."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import plotly.graph_objects as go

from offline.report.drawing import Figure, axis, layout_of
from offline.results.compression import LayerOutcome, RunResult

PALE, DEEP = "#eef3f9", "#0b3a75"
COLOUR_BAR = {
    "orientation": "h",
    "thickness": 10,
    "lenmode": "pixels",
    "len": 220,
    "x": 0,
    "xanchor": "left",
    "y": 1.0,
    "yanchor": "bottom",
}
_MAX_TICKS = 16
_MIN_CELL = 9  # pixels: below this the heat map scrolls rather than shrinks


def heat_map(result: RunResult) -> Figure:
    """Layers x experts: the base's usage as colour, dropped experts crossed out."""
    layers = result.layers
    most = max((layer.num_experts for layer in layers), default=0)
    shares = [_shares(layer) for layer in layers]
    if not (watched := any(share is not None for row in shares for share in row)):
        shares = [[0.0] * layer.num_experts for layer in layers]  # pale cells, for the crosses
    columns = [[*row, *[None] * (most - len(row))] for row in shares]
    top = _colour_top(shares, most)
    heat = go.Heatmap(
        z=[list(row) for row in zip(*columns, strict=True)],
        zmin=0,
        zmax=top,
        colorscale=[[0, PALE], [1, DEEP]],
        xgap=1,
        ygap=1,
        customdata=[[_fate(layer, e) for layer in layers] for e in range(most)],
        text=[[str(layer.layer) for layer in layers] for _ in range(most)],
        hovertemplate="layer %{text}, expert %{y}<br>"
        + ("%{z:.1f}% of the layer's tokens<br>" if watched else "")
        + "%{customdata}<extra></extra>",
        showscale=watched,
        colorbar={"title": {"text": "% of the layer's tokens", "side": "top"}, **COLOUR_BAR},
    )
    layout, min_width = grid_layout([layer.layer for layer in layers], most)
    crosses = _crosses(layers, shares, top)
    drawing = go.Figure([heat, crosses] if crosses.x else [heat])
    drawing.update_layout(**layout)
    dropped = sum(layer.num_experts - len(layer.kept) for layer in layers if layer.kept)
    use = "share of each layer's tokens per expert; " if watched else ""
    label = (
        f"Heat map of {len(layers)} layers and up to {most} experts per layer: "
        f"{use}{dropped} dropped experts are crossed out. "
        "The table below it lists the kept experts of every layer."
    )
    return Figure("heat-map", drawing, label, min_width=min_width)


def grid_layout(layers: Sequence[int], experts: int) -> tuple[dict[str, Any], int]:
    """Return the layout of a map of layers x experts, and how wide it is at least, in pixels.

    :param layers: decoder layers, one per column
    :param experts: E of the widest layer, one per row
    """
    height = min(1400, max(200, 26 * experts if experts <= 16 else 10 * experts)) + 110
    ticks = list(range(0, len(layers), -(-len(layers) // _MAX_TICKS) or 1))
    layout = layout_of(
        height,
        showlegend=False,
        xaxis=axis(
            "decoder layer",
            tickvals=ticks,
            ticktext=[str(layers[i]) for i in ticks],
            tickangle=0,
            tickfont={"size": 11},
            showgrid=False,
            range=[-0.5, len(layers) - 0.5],
        ),
        yaxis=axis(
            "expert", range=[experts - 0.5, -0.5], showgrid=False, dtick=max(1, -(-experts // 16))
        ),
    )
    return layout, _MIN_CELL * len(layers) + 60


def _colour_top(shares: list[list[float | None]], most: int) -> float:
    """The share that gets the deepest colour: one busy expert must not turn all others pale."""
    highest = max((s for row in shares for s in row if s is not None), default=0) or 1
    return min(highest, 400 / most)


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
    return crossed(cells, top, len(layers))


def crossed(cells: Sequence[tuple[int, int, float]], top: float, columns: int) -> go.Scatter:
    """Return crosses over cells of (column, expert, percentage) that are dropped.

    :param top: the percentage of the deepest colour
    :param columns: how many the map has
    """
    return go.Scatter(
        x=[column for column, _, _ in cells],
        y=[expert for _, expert, _ in cells],
        mode="markers",
        name="dropped",
        hoverinfo="skip",
        marker={
            "symbol": "x-thin",
            "size": 5 if columns > 40 else 7,
            # an open cross is all line: dark on pale cells, pale on deep ones
            "line": {
                "width": 1.6,
                "color": ["#ffffff" if s > 0.5 * top else "#1b1f24" for _, _, s in cells],
            },
        },
    )
