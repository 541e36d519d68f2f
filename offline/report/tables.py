"""The tables of the report as strings; the template only lays them out."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from pydantic import JsonValue

from offline.report import words
from offline.report.inputs import Check, CheckItem, Ratio, Serving
from offline.results.compression import LayerOutcome, Quality, RunResult


@dataclass(frozen=True, slots=True)
class Table:
    """A caption, headings and rows; ``text`` are the numbers of the left-aligned columns."""

    caption: str
    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    text: frozenset[int] = frozenset({0})


def quality_table(result: RunResult) -> Table:
    """Accuracy of every variant on the held-out split of every task."""
    held_out = [q for q in result.quality if q.split == "test"]
    bases = {(q.task, q.measure): q for q in held_out if q.variant == "base"}
    rows = []
    for q in held_out:
        base = bases.get((q.task, q.measure))
        gap = "" if base is None or q is base else words.points(q.accuracy - base.accuracy)
        measured = (words.percent(q.accuracy), words.interval(q.low, q.high), gap)
        names = (words.variant(q.variant), words.task(q))
        rows.append((*names, *measured, str(q.items), str(q.maps)))
    head = ("variant", "task", "accuracy", "95% interval", "against base, points", "items", "maps")
    caption = f"Accuracy on the held-out split of {result.task}"
    return Table(caption, head, tuple(rows), frozenset({0, 1}))


def metrics_table(result: RunResult) -> Table | None:
    """Everything that tasks of lm-evaluation-harness report of the held-out items."""
    rows = tuple(
        (words.variant(q.variant), words.task(q), name, value, q.data_split)
        for q in result.quality
        if q.split == "test"
        for name, value in q.named.items()
    )
    head = ("variant", "task", "metric", "value", "split of the data")
    caption = "All metrics of the tasks, as lm-evaluation-harness gives them"
    return Table(caption, head, rows, frozenset({0, 1, 2, 4})) if rows else None


def optimism_table(result: RunResult) -> Table | None:
    """Accuracy along search -> selection -> test; None unless a variant has two of them."""
    rows = []
    for (variant, task), entries in _by_variant_and_task(result).items():
        if len(entries) < 2:
            continue
        for before, step in zip([None, *entries], entries, strict=False):
            gap = "" if before is None else words.points(step.accuracy - before.accuracy)
            numbers = (words.percent(step.accuracy), words.interval(step.low, step.high), gap)
            names = (words.variant(variant), task, words.SPLITS[step.split])
            rows.append((*names, *numbers, str(step.items)))
    head = ("variant", "task", "split", "accuracy", "95% interval", "change, points", "items")
    caption = "From the items that drove the search to items that decided nothing"
    return Table(caption, head, tuple(rows), frozenset({0, 1, 2})) if rows else None


def _by_variant_and_task(result: RunResult) -> dict[tuple[str, str], list[Quality]]:
    """Group the entries; within a group in the order search, selection, held-out."""
    found: dict[tuple[str, str], list[Quality]] = {}
    for split in words.SPLITS:
        for q in result.quality:
            if q.split == split:
                found.setdefault((q.variant, words.task(q)), []).append(q)
    return found


def optimism_sentence(result: RunResult) -> str | None:
    """How much of the search's fitness was luck, on the first task."""
    search, test = (
        result.quality_of(result.method, split, result.tasks[0]) for split in ("search", "test")
    )
    if search is None or test is None:
        return None
    gap = 100 * (search.accuracy - test.accuracy)
    side = "above" if gap >= 0 else "below"
    return (
        f"On the items that drove the search the chosen map has {words.percent(search.accuracy)}; "
        f"on held-out items {words.percent(test.accuracy)}. The search's own figure is "
        f"{abs(gap):.1f} points {side} what a user will see."
    )


def layers_table(result: RunResult) -> Table:
    """What every layer keeps: the heat map in words."""
    rows = tuple(_layer_row(layer) for layer in result.layers)
    head = ("layer", "kept", "dropped", "kept of", "top-k", "router", "routed tokens kept")
    return Table("Experts kept and dropped in every layer", head, rows, frozenset({0, 1, 2, 5}))


def _layer_row(layer: LayerOutcome) -> tuple[str, ...]:
    number, size = str(layer.layer), str(layer.num_experts)
    share = kept_share([layer])
    if not layer.kept:  # merged experts have no ids of the base
        counts = f"{layer.num_kept} of {size}"
        return (number, "merged", "", counts, str(layer.top_k), layer.router, "-")
    dropped = tuple(e for e in range(layer.num_experts) if e not in layer.kept)
    counts = f"{len(layer.kept)} of {size}"
    names = (words.ids(layer.kept), words.ids(dropped) or "none")
    kept = "-" if share is None else words.percent(share)
    return (number, *names, counts, str(layer.top_k), layer.router, kept)


def kept_share(layers: list[LayerOutcome]) -> float | None:
    """Share of the base's routed tokens that went to experts which are kept."""
    total = sum(sum(layer.usage) for layer in layers)
    kept = sum(layer.usage[e] for layer in layers for e in layer.kept if e < len(layer.usage))
    return kept / total if total else None


def improvements_table(result: RunResult) -> Table | None:
    """The candidates that were better than all before them."""
    rows, best = [], float("-inf")
    for p in result.search:
        if p.complete and p.fitness > best:
            best = p.fitness
            times = (f"{p.seconds:.1f}", f"{p.tokens:,}")
            rows.append((str(p.evaluation), p.phase, f"{100 * p.fitness:.1f}", *times))
    head = ("evaluation", "phase", f"{result.fitness} x 100", "seconds", "tokens")
    caption = "Candidates that improved on the best so far"
    return Table(caption, head, tuple(rows), frozenset({0, 1})) if rows else None


def cost_table(result: RunResult) -> Table | None:
    """What the search cost: candidates, items, tokens, seconds."""
    rows = []
    for phase in dict.fromkeys(p.phase for p in result.search):
        points = [p for p in result.search if p.phase == phase]
        seconds, dropped = sum(p.seconds for p in points), sum(not p.complete for p in points)
        numbers = (
            len(points),
            dropped,
            sum(p.items for p in points),
            sum(p.tokens for p in points),
        )
        times = (f"{seconds:.1f}", f"{seconds / len(points):.2f}")
        rows.append((phase, *(f"{n:,}" for n in numbers), *times))
    counts = ("candidates", "dropped by racing", "items evaluated", "tokens")
    head = ("phase", *counts, "seconds", "seconds per candidate")
    return Table("What the search cost", head, tuple(rows)) if rows else None


def sizes_table(result: RunResult) -> Table:
    """Experts and bytes, before and after."""
    base, pruned = result.base_size, result.pruned_size
    shown: tuple[tuple[str, int, int, Callable[[int], str]], ...] = (
        ("experts", base.experts, pruned.experts, "{:,}".format),
        ("on disk", base.num_bytes, pruned.num_bytes, words.gib),
        ("on disk, bytes", base.num_bytes, pruned.num_bytes, "{:,}".format),
        ("expert weights", base.expert_bytes, pruned.expert_bytes, words.gib),
        ("expert weights, bytes", base.expert_bytes, pruned.expert_bytes, "{:,}".format),
    )
    rows = tuple((name, say(b), say(p), words.change(b, p)) for name, b, p, say in shown)
    return Table("Size before and after", ("", "base", "pruned", "change"), rows)


def serving_table(serving: Serving) -> Table:
    """Both sides' medians, their ratio and the ratio of every round."""
    rows = []
    for ratio in serving.ratios:
        default = (ratio.metric, ratio.metric, 1.0, 2)
        name, _, unit, digits = words.METRICS.get(ratio.metric, default)
        sides = [serving.value(s, ratio.metric, ratio.users) for s in ("base", "candidate")]
        values = [words.number(None if v is None else v / unit, digits) for v in sides]
        rounds = " ".join(f"{value:.2f}" for value in ratio.per_round)
        users = "" if ratio.users is None else str(ratio.users)
        rows.append((name, users, *values, f"{ratio.median:.2f}", rounds, verdict(ratio)))
    head = ("metric", "users", "base", "pruned", "ratio", "per round", "pruned is")
    caption = "Serving: pruned divided by base within each round, median of the rounds"
    return Table(caption, head, tuple(rows), frozenset({0, 5, 6}))


def verdict(ratio: Ratio) -> str:
    """Say in a word how to read a ratio; rounds that disagree prove nothing."""
    if ratio.higher_is_better is None:
        return ""
    rounds = ratio.per_round or (ratio.median,)
    higher = [value > 1 for value in rounds]
    if any(higher) != all(higher) or 1.0 in rounds:
        return "unclear"
    return "better" if all(higher) == ratio.higher_is_better else "worse"


def checks_table(check: Check) -> Table:
    """Every check with what it measured and what it allows."""
    rows = tuple(
        (item.name, "passed" if item.ok else "FAILED", *map(_plain, _facts(item)))
        for item in check.checks
    )
    head = ("check", "outcome", "measured", "limit", "detail")
    return Table("Checks of the served checkpoint", head, rows, frozenset({0, 1, 4}))


def _facts(item: CheckItem) -> tuple[JsonValue, ...]:
    return (item.value, item.limit, item.detail)


def data_table(result: RunResult) -> Table | None:
    """The items that decided, named so that they can be found again."""
    data = result.provenance.data
    rows = tuple((d.name, d.split, str(d.count), d.sha256) for d in data)
    head = ("data", "split", "items", "identity")
    return Table("Data that decided", head, rows, frozenset({0, 1, 3})) if rows else None


def pairs_table(caption: str, head: tuple[str, str], pairs: dict[str, JsonValue]) -> Table | None:
    """Names and values: settings, versions."""
    rows = tuple(_rows(pairs))
    return Table(caption, head, rows, frozenset({0, 1})) if rows else None


def _rows(pairs: Mapping[str, JsonValue]) -> Iterator[tuple[str, str]]:
    """Yield names and values; those of a group follow it under their own names."""
    for name, value in pairs.items():
        if isinstance(value, dict):
            yield from ((f"{name}: {inner}", text) for inner, text in _rows(value))
        else:
            yield name, _plain(value) or "-"


def _plain(value: JsonValue) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.4g}"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
