"""The tables of a sweep as strings; the template only lays them out."""

from __future__ import annotations

import re

from offline.report import words
from offline.report.tables import Table
from offline.results.estimate import Estimate
from offline.results.sweep import SweepPoint, SweepResult


def again(sweep: SweepResult) -> list[SweepPoint]:
    """Return what was measured on held-out items, the smallest first."""
    found = [point for point in sweep.points if point.held_out is not None]
    return sorted(found, key=lambda point: (point.num_bytes, point.active, point.name))


def anchor(name: str) -> str:
    """Return the id of a choice's place on the page."""
    return "build-" + re.sub(r"[^\w.-]", "-", name)


def held_out(sweep: SweepResult) -> Table:
    """Size and accuracy of the base and of all that was measured again."""
    base = ("base", str(sweep.base_experts), "", words.gib(sweep.base_bytes))
    rows = [(*base, *_accuracy(sweep.base_held_out), "", "")]
    for point in again(sweep):
        assert point.held_out is not None
        verdict = "" if point.gates is None else point.gates.verdict
        rows.append(
            (*_size(point), *_accuracy(point.held_out), "yes" if point.on_front else "", verdict)
        )
    head = (
        *("choice", "experts", "active", "on disk", "accuracy", "95% interval"),
        *("on the front", "gates"),
    )
    caption = f"Held-out items of {', '.join(sweep.tasks)}"
    return Table(caption, head, tuple(rows), frozenset({0, 6, 7}))


def gates(sweep: SweepResult) -> Table | None:
    """Every gate of what was measured again; None without gates."""
    rows = tuple(
        (
            point.name,
            f"{gate.measure.replace('_', ' ')}: {gate.name}",
            f"{gate.bound} {gate.limit:g}",
            "" if gate.measured is None else str(gate.measured),
            gate.verdict,
            gate.detail,
        )
        for point in again(sweep)
        if point.gates is not None
        for gate in point.gates.gates
    )
    head = ("choice", "gate", "limit", "measured, 95% interval", "verdict", "why")
    return Table("Gates", head, rows, frozenset(range(6))) if rows else None


def speeds(sweep: SweepResult) -> Table | None:
    """How fast the front generates, the smallest first; None where it was not measured."""
    rows = tuple(
        (
            *_size(point),
            words.percent(point.held_out.value),
            f"{point.speed.tokens_per_second:,.1f}",
            f"{point.speed.base_tokens_per_second:,.1f}",
            str(point.speed.ratio),
        )
        for point in again(sweep)
        if point.speed is not None and point.held_out is not None
    )
    head = (
        *("choice", "experts", "active", "on disk", "accuracy", "tokens/s"),
        *("the base's in turn", "ratio, 95% interval"),
    )
    return Table("Tokens per second", head, rows, frozenset({0})) if rows else None


def how_fast(sweep: SweepResult) -> str:
    """Say how tokens per second were measured; nothing where they were not."""
    return next((point.speed.how for point in sweep.points if point.speed is not None), "")


def text(sweep: SweepResult) -> Table | None:
    """What plain text said of what was measured again; None where none was read."""
    rows = tuple(
        (
            point.name,
            domain.name,
            str(domain.perplexity),
            _said(domain.ratio),
            _said(domain.same_first),
            _said(domain.divergence),
        )
        for point in again(sweep)
        for domain in point.text
    )
    head = ("choice", "domain", "perplexity", "by the base's", "same first token", "KL, nats")
    return Table("Plain text, 95% intervals", head, rows, frozenset({0, 1})) if rows else None


def all_points(sweep: SweepResult) -> Table:
    """Every choice on the search items."""
    rows = tuple(
        (*_size(point), words.percent(point.search), str(point.items), _state(point))
        for point in sweep.points
    )
    head = ("choice", "experts", "active", "on disk", "search accuracy", "items", "")
    return Table("All choices, search items", head, rows, frozenset({0, 6}))


def skipped(sweep: SweepResult) -> Table | None:
    """Choices that were left out; None if there are none."""
    rows = tuple(sweep.skipped.items())
    return Table("Left out", ("choice", "why"), rows, frozenset({0, 1})) if rows else None


def _size(point: SweepPoint) -> tuple[str, str, str, str]:
    return point.name, str(point.experts), f"{point.active:g}", words.gib(point.num_bytes)


def _state(point: SweepPoint) -> str:
    if not point.complete:
        return "dropped early"
    return "measured again" if point.held_out is not None else ""


def _accuracy(found: Estimate) -> tuple[str, str]:
    interval = (
        "" if found.low is None or found.high is None else words.interval(found.low, found.high)
    )
    return words.percent(found.value), interval


def _said(found: Estimate | None) -> str:
    return "" if found is None else str(found)
