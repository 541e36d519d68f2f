"""What all figures of the report share.

Colours are of middle lightness, so that they stand out on a white and on a dark page; nothing
is told by colour alone. Text and grid take the page's colours by CSS, which also serves print.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import plotly.graph_objects as go
from markupsafe import Markup

COLOURS = {
    "base": "#7d8590",
    "random": "#c4761b",
    "frequency": "#2b9a74",
    "soft_activation": "#8d8a1f",
    "naee": "#b8578f",
    "oneshot": "#4f9db8",
    "eep_prune": "#6f7fd8",
    "eep": "#3a86d0",
    "lottery": "#3a86d0",
}
_FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'DejaVu Sans', sans-serif"


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


def layout_of(height: int, **more: Any) -> dict[str, Any]:
    """Return the layout of a figure ``height`` pixels high."""
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


def axis(title: str, **more: Any) -> dict[str, Any]:
    """Return an axis that cannot be zoomed."""
    return {
        "title": {"text": title, "standoff": 8},
        "automargin": True,
        "fixedrange": True,
        "zeroline": False,
        "gridcolor": "#8884",
        **more,
    }


class _Uneven(Protocol):
    """A layer with the coefficient of variation of its experts' use."""

    @property
    def layer(self) -> int: ...

    @property
    def cv(self) -> float: ...


def cv_by_layer(
    sides: Iterable[tuple[str, Sequence[_Uneven], str, str]], **layout: Any
) -> go.Figure:
    """Draw the coefficient of variation of every layer, a line for each side.

    :param sides: name, layers, colour and symbol of each
    :param layout: more of the layout
    """
    drawing = go.Figure(
        [
            marked_line(
                name,
                [layer.layer for layer in layers],
                [layer.cv for layer in layers],
                colour,
                symbol,
                hover="layer %{x}",
            )
            for name, layers, colour, symbol in sides
        ]
    )
    last = max((layer for trace in drawing.data for layer in trace.x), default=0)
    drawing.update_layout(
        **layout_of(320, **layout),
        xaxis=axis("decoder layer", tick0=0, dtick=max(1, -(-last // 12))),
        yaxis=axis("coefficient of variation", rangemode="tozero"),
    )
    return drawing


def marked_line(
    name: str, x: Sequence[float], y: Sequence[float], colour: str, symbol: str, *, hover: str
) -> go.Scatter:
    """Draw values as a line with a marker at each.

    :param hover: what is said of a value's place, in plotly's terms (``%{x}``)
    """
    return go.Scatter(
        x=list(x),
        y=list(y),
        mode="lines+markers",
        name=name,
        line={"color": colour, "width": 2},
        marker={"symbol": symbol, "size": 8},
        hovertemplate=f"{name}, {hover}: %{{y:.2f}}<extra></extra>",
    )
