"""What criteria would drop: where they agree, and what pruning does to their order."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence

import numpy as np

from offline.calibration.statistics import Evidence, LayerEvidence
from offline.criteria.registry import CRITERIA, Rule
from offline.results.analysis import Change, LayerChange, Overlap
from vllm_moe_prune.errors import PruneError

Dropped = frozenset[tuple[int, int]]  # (decoder layer, expert)


def rules_of(words: Sequence[str] | None, evidence: Sequence[LayerEvidence]) -> list[Rule]:
    """Read criterion words; None means all that the scores allow, in their better direction.

    :param evidence: of all layers that will be looked at
    :raises PruneError: for an unknown word, or one that is given twice
    """
    if words is None:
        gradients = all(shown.seen.gradient is not None for shown in evidence)
        known = [name for name, c in CRITERIA.items() if gradients or not c.needs_gradients]
        return [Rule.parse(name) for name in known]
    rules = [Rule.parse(word) for word in words]
    for rule in rules:
        if rules.count(rule) > 1:
            raise PruneError(f"--criteria: {rule.word} is given twice")
    return rules


def overlap(
    rules: Sequence[Rule],
    evidence: Evidence,
    keep: Mapping[int, int],
    others: Mapping[str, Dropped] | None = None,
) -> Overlap:
    """Compare what criteria drop where each layer keeps so many experts.

    :param keep: decoder layer -> E'
    :param others: name -> what something else drops, to compare with
    :raises PruneError: if nothing is dropped, or as `Rule.order`
    """
    counts = {layer: shown.seen.num_experts for layer, shown in evidence.items()}
    for layer, count in counts.items():
        if not 1 <= keep[layer] <= count:
            raise PruneError(f"--keep {keep[layer]}: layer {layer} has {count} experts")
    if keep == counts:
        raise PruneError(
            "all experts are kept, so there is nothing that criteria could disagree about",
            hint="a lower --keep",
        )
    sets: dict[str, Dropped] = {rule.word: dropped(rule, evidence, keep) for rule in rules}
    sets |= others or {}
    table = tuple(tuple(jaccard(a, b) for b in sets.values()) for a in sets.values())
    return Overlap(
        words=tuple(sets), keep=dict(keep), jaccard=table, by_chance=by_chance(counts, keep)
    )


def dropped(rule: Rule, evidence: Evidence, keep: Mapping[int, int]) -> Dropped:
    """Return what a criterion drops in all layers."""
    return frozenset(
        (layer, expert)
        for layer, shown in evidence.items()
        for expert in set(range(shown.seen.num_experts)) - {*rule.order(shown).kept(keep[layer])}
    )


def jaccard(one: Collection[object], other: Collection[object]) -> float:
    """Return |A and B| / |A or B|; 1 for two empty sets."""
    a, b = set(one), set(other)
    return len(a & b) / len(a | b) if a | b else 1.0


def by_chance(counts: Mapping[int, int], keep: Mapping[int, int]) -> float:
    """Return expected |A and B| / expected |A or B| of two random choices.

    :param counts: decoder layer -> E
    :param keep: decoder layer -> E', less than E somewhere
    """
    gone = {layer: count - keep[layer] for layer, count in counts.items()}
    both = math.fsum(gone[layer] ** 2 / count for layer, count in counts.items())
    return both / (2 * sum(gone.values()) - both)


def changes(
    rules: Iterable[Rule],
    base: Evidence,
    after: Evidence,
    survivors: Mapping[int, Sequence[int]],
) -> tuple[Change, ...]:
    """Compare the order in which criteria would drop the survivors, before and after pruning.

    :param after: decoder layer -> evidence of the survivors only
    :param survivors: decoder layer -> the ids that these had in the base
    """
    found = []
    for rule in rules:
        layers = tuple(
            _change(
                layer,
                [expert for expert in rule.order(base[layer]).experts if expert in set(ids)],
                [ids[expert] for expert in rule.order(after[layer]).experts],
            )
            for layer, ids in survivors.items()
        )
        correlation = _mean(change.rank_correlation for change in layers)
        shared = _mean(change.next_overlap for change in layers)
        found.append(
            Change(word=rule.word, rank_correlation=correlation, next_overlap=shared, layers=layers)
        )
    return tuple(found)


def rank_correlation(one: Sequence[int], other: Sequence[int]) -> float | None:
    """Return Spearman's correlation of two orders of the same ids; None for fewer than two."""
    assert sorted(one) == sorted(other)
    if len(one) < 2:
        return None
    places = [other.index(expert) for expert in one]
    return float(np.corrcoef(np.arange(len(places)), places)[0, 1])


def _change(layer: int, before: list[int], after: list[int]) -> LayerChange:
    half = len(before) // 2
    return LayerChange(
        layer=layer,
        rank_correlation=rank_correlation(before, after),
        next_overlap=jaccard(before[:half], after[:half]) if half else None,
    )


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return math.fsum(known) / len(known) if known else None
