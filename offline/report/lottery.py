"""The rounds of a lottery in the report: perplexity and load of the experts."""

from __future__ import annotations

from collections.abc import Sequence

import plotly.graph_objects as go

from offline.report.drawing import COLOURS, Figure, axis, cv_by_layer, layout_of, marked_line
from offline.report.tables import Table
from offline.results.lottery import LayerLoad, LotteryRecord, Measured

_BASE, _TUNED, _DROPPED = COLOURS["base"], COLOURS["lottery"], COLOURS["random"]
Side = tuple[str, tuple[LayerLoad, ...], str, str, str]  # name, load, colour, symbol, pattern


def figures_of(lottery: LotteryRecord) -> dict[str, Figure]:
    """Draw everything, by name of the figure."""
    drawn = [perplexity(lottery), balance(lottery)]
    drawn += [load(lottery, layer) for layer in shown_layers(lottery)]
    return {figure.name: figure for figure in drawn}


def perplexity(lottery: LotteryRecord) -> Figure:
    """Perplexity of every round, after dropping and after the finetune."""
    counts = [_per_layer(lottery.base), *(_per_layer(one.result) for one in lottery.rounds)]
    dropped = [lottery.base, *(one.dropped for one in lottery.rounds)]
    lines = [_line("after dropping", counts, dropped, _DROPPED, "circle")]
    if any(one.tuned for one in lottery.rounds):
        ends = [lottery.base, *(one.result for one in lottery.rounds)]
        lines.append(_line("after finetune", counts, ends, _TUNED, "diamond"))
    drawing = go.Figure(lines)
    drawing.update_layout(
        **layout_of(340, showlegend=len(lines) > 1),
        xaxis=axis("experts per layer", autorange="reversed", dtick=1),
        yaxis=axis("held-out perplexity", type="log"),
    )
    said = "; ".join(
        f"{count} experts {one.result.perplexity:.2f}"
        for count, one in zip(counts[1:], lottery.rounds, strict=True)
    )
    label = f"Perplexity by round: base {lottery.base.perplexity:.2f}; {said}."
    return Figure("rounds", drawing, label)


def balance(lottery: LotteryRecord) -> Figure:
    """Coefficient of variation of each layer's load: base, and the last round's two models."""
    sides = _sides(lottery)
    drawing = cv_by_layer(side[:4] for side in sides)
    said = "; ".join(f"{name} {_mean_cv(layers):.2f}" for name, layers, *_ in sides)
    return Figure("load-balance", drawing, f"Load per layer, mean over layers: {said}.")


def load(lottery: LotteryRecord, layer: int) -> Figure:
    """One layer's load by expert, each side as shares of its own tokens."""
    bars, said = [], []
    for name, layers, colour, _, pattern in _sides(lottery):
        found = next(one for one in layers if one.layer == layer)
        total = sum(found.tokens) or 1
        bars.append(
            go.Bar(
                x=[str(expert) for expert in found.experts],
                y=[100 * tokens / total for tokens in found.tokens],
                name=name,
                marker={"color": colour, "pattern": {"shape": pattern}},
                hovertemplate=f"{name}, expert %{{x}}: %{{y:.1f}}%<extra></extra>",
            )
        )
        said.append(f"{name} max/mean {found.max_over_mean:.2f}")
    drawing = go.Figure(bars)
    drawing.update_layout(
        **layout_of(300, barmode="group"),
        xaxis=axis(f"expert of layer {layer}", type="category"),
        yaxis=axis("% of the layer's load", rangemode="tozero"),
    )
    return Figure(f"load-{layer}", drawing, f"Load of layer {layer}: {'; '.join(said)}.")


def shown_layers(lottery: LotteryRecord) -> tuple[int, ...]:
    """Return an early and a late layer, as the paper shows 6 and 30 of 32."""
    layers = [one.layer for one in lottery.base.load]
    return tuple(dict.fromkeys((layers[len(layers) // 5], layers[-1 - len(layers) // 16])))


def rounds_table(lottery: LotteryRecord) -> Table:
    """Perplexity and load of the base and of every round."""
    domains = tuple(lottery.base.losses)
    base = lottery.base
    first = ("base", str(_per_layer(base)), _number(base.perplexity), "", "", _number(base.cv), "")
    rows = [(*first, *_domains(base))]
    for one in lottery.rounds:
        tuned, trained = one.tuned, one.trained
        row = (
            str(one.number),
            str(_per_layer(one.result)),
            _number(one.dropped.perplexity),
            "" if tuned is None else _number(tuned.perplexity),
            "" if trained is None else f"{trained.tuning.tokens:,}",
            _number(one.dropped.cv),
            "" if tuned is None else _number(tuned.cv),
        )
        rows.append((*row, *_domains(one.result)))
    last = (_number(lottery.result.perplexity), "", "", _number(lottery.result.cv), "")
    stored = ("as stored", str(_per_layer(lottery.result)), *last)
    rows.append((*stored, *_domains(lottery.result)))
    head = ("round", "experts per layer", "perplexity", "after finetune", "tokens trained on")
    loads = ("load CV", "after finetune")
    caption = "Held-out perplexity by round; domains at the end of it"
    return Table(caption, (*head, *loads, *domains), tuple(rows))


def load_table(lottery: LotteryRecord) -> Table:
    """Coefficient of variation and max/mean of every layer."""
    sides = _sides(lottery)
    head = ["layer"]
    for name, *_ in sides:
        head += [f"CV, {name}", f"max/mean, {name}"]
    rows = []
    for place, layer in enumerate(lottery.base.load):
        row = [str(layer.layer)]
        for _, layers, *_ in sides:
            row += [_number(layers[place].cv), _number(layers[place].max_over_mean)]
        rows.append(tuple(row))
    return Table("Load of the experts on the held-out text", tuple(head), tuple(rows))


def is_tuned(lottery: LotteryRecord | None) -> bool:
    """Whether weights were trained, so that no map of the base makes the result."""
    return lottery is not None and any(one.trained is not None for one in lottery.rounds)


def _sides(lottery: LotteryRecord) -> list[Side]:
    last = lottery.rounds[-1]
    sides: list[Side] = [
        ("base", lottery.base.load, _BASE, "circle", ""),
        ("after dropping", last.dropped.load, _DROPPED, "square", "/"),
    ]
    if last.tuned is not None:
        sides.append(("after finetune", last.tuned.load, _TUNED, "diamond", "x"))
    return sides


def _line(
    name: str, counts: Sequence[int], found: Sequence[Measured], colour: str, symbol: str
) -> go.Scatter:
    perplexities = [one.perplexity for one in found]
    return marked_line(name, counts, perplexities, colour, symbol, hover="%{x} experts")


def _per_layer(one: Measured) -> int:
    return max(len(layer.experts) for layer in one.load)


def _mean_cv(layers: Sequence[LayerLoad]) -> float:
    return sum(layer.cv for layer in layers) / len(layers)


def _domains(one: Measured) -> tuple[str, ...]:
    return tuple(_number(value) for value in one.perplexities.values())


def _number(value: float) -> str:
    return f"{value:.2f}"
