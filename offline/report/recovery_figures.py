"""The figure of `vmprune recover`: accuracy in every mode, base beside pruned."""

from __future__ import annotations

import plotly.graph_objects as go

from offline.report import words
from offline.report.drawing import COLOURS, Figure, axis, layout_of
from offline.report.recovery_tables import mode_name, name_of
from offline.results.recovery import SUBJECTS, Cell, Mode, Recovery, Subject

_COLOURS: dict[Subject, str] = {"base": COLOURS["base"], "model": COLOURS["eep"]}
_PATTERNS: dict[Subject, str] = {"base": "", "model": "x"}


def recovery_bars(recovery: Recovery) -> Figure:
    """One pair of bars with 95 % intervals per task and mode."""
    shown = [subject for subject in SUBJECTS if any(c.subject == subject for c in recovery.cells)]
    bars = [_bars(recovery, subject) for subject in shown]
    drawing = go.Figure(bars)
    drawing.update_layout(
        **layout_of(380, barmode="group", bargap=0.35),
        xaxis=axis("", showgrid=False),
        yaxis=axis("on held-out items, %", rangemode="tozero"),
    )
    said = (
        f"{words.plain(c.task)}, {mode_name(c.mode, recovery.shots)}, "
        f"{name_of(recovery, c.subject)} {words.percent(c.accuracy)} "
        f"({words.interval(c.low, c.high)})"
        for c in recovery.cells
    )
    label = f"Held-out accuracy with 95% intervals: {'; '.join(said)}."
    return Figure("recovery", drawing, label, min_width=110 * len(list(recovery.rows())))


def _bars(recovery: Recovery, subject: Subject) -> go.Bar:
    cells: list[tuple[str, Mode, Cell]] = []
    for task, mode, base, own in recovery.rows():
        cell = base if subject == "base" else own
        if cell is not None:
            cells.append((task, mode, cell))
    modes = [mode_name(mode, recovery.shots) for _, mode, _ in cells]
    return go.Bar(
        x=[[words.plain(task) for task, _, _ in cells], modes],
        y=[100 * c.accuracy for _, _, c in cells],
        name=name_of(recovery, subject),
        marker={"color": _COLOURS[subject], "pattern": {"shape": _PATTERNS[subject]}},
        error_y={
            "type": "data",
            "symmetric": False,
            "array": [100 * (c.high - c.accuracy) for _, _, c in cells],
            "arrayminus": [100 * (c.accuracy - c.low) for _, _, c in cells],
        },
        hovertemplate="%{x}: %{y:.1f}%<extra></extra>",
    )
