"""What criteria would drop, where they agree, and how pruning changes their order."""

from __future__ import annotations

import dataclasses
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import spearmanr

from offline.analysis.rankings import (
    by_chance,
    changes,
    dropped,
    jaccard,
    overlap,
    rank_correlation,
    rules_of,
)
from offline.analysis.subset import only
from offline.calibration.statistics import GradientStatistics
from offline.criteria.registry import CRITERIA, Rule
from tests.analysis.samples import evidence, masked, routed
from vllm_moe_prune.errors import PruneError

FOUND = evidence((0, 1, 4))
KEEP = {0: 3, 1: 4, 4: 2}


def rules(*words: str) -> list[Rule]:
    return [Rule.parse(word) for word in words]


def test_what_is_dropped_is_what_the_criterion_orders_first() -> None:
    gone = dropped(Rule.parse("min-euf"), FOUND, KEEP)
    for layer, shown in FOUND.items():
        mine = {expert for number, expert in gone if number == layer}
        assert len(mine) == 6 - KEEP[layer]
        counts = shown.seen.counts
        assert counts[list(mine)].max() <= counts[list({*range(6)} - mine)].min()


def test_overlap_is_a_symmetric_table_of_jaccard_indices() -> None:
    words = ("min-euf", "max-euf", "min-ean", "max-ecc")
    found = overlap(rules(*words), FOUND, KEEP)
    assert found.words == words
    sets = [dropped(rule, FOUND, KEEP) for rule in rules(*words)]
    for i, a in enumerate(sets):
        for j, b in enumerate(sets):
            assert found.jaccard[i][j] == found.jaccard[j][i] == len(a & b) / len(a | b)
        assert found.jaccard[i][i] == 1
    # of six experts three or fewer go in layers 0 and 1: the two ends have nothing in common there
    assert found.jaccard[0][1] == pytest.approx(2 / (9 * 2 - 2))


def test_another_set_can_be_compared_with() -> None:
    same = dropped(Rule.parse("min-ean"), FOUND, KEEP)
    found = overlap(rules("min-ean", "max-ean"), FOUND, KEEP, {"the map": same})
    assert found.words == ("min-ean", "max-ean", "the map")
    assert found.jaccard[0][2] == 1


def test_chance_is_what_random_choices_have() -> None:
    rng = np.random.default_rng(0)
    counts, keep = {0: 8, 1: 16}, {0: 4, 1: 4}

    def draw() -> set[tuple[int, int]]:
        return {
            (n, int(e)) for n in counts for e in rng.choice(counts[n], counts[n] - keep[n], False)
        }

    pairs = [(draw(), draw()) for _ in range(3000)]
    drawn = sum(len(a & b) for a, b in pairs) / sum(len(a | b) for a, b in pairs)
    assert by_chance(counts, keep) == pytest.approx(drawn, abs=0.01)
    assert by_chance({0: 4}, {0: 0}) == 1


@pytest.mark.parametrize(
    ("keep", "said"),
    [
        ({0: 6, 1: 6, 4: 6}, "all experts are kept"),
        ({0: 3, 1: 7, 4: 3}, "--keep 7: layer 1 has 6 experts"),
    ],
)
def test_what_cannot_be_compared_is_named(keep: dict[int, int], said: str) -> None:
    with pytest.raises(PruneError, match=re.escape(said)):
        overlap(rules("min-ean"), FOUND, keep)


def test_all_criteria_that_the_scores_allow_are_the_default() -> None:
    names = [rule.name for rule in rules_of(None, list(FOUND.values()))]
    assert names == [name for name, c in CRITERIA.items() if not c.needs_gradients]
    gradient = GradientStatistics(np.eye(6), np.ones(6), np.ones(6), np.ones(6))
    seen = dataclasses.replace(FOUND[0].seen, gradient=gradient)
    whole = dataclasses.replace(FOUND[0], seen=seen)
    assert [rule.name for rule in rules_of(None, [whole])] == list(CRITERIA)
    assert "egn" not in [rule.name for rule in rules_of(None, [whole, FOUND[1]])]
    assert [rule.word for rule in rules_of(["ean", "max-euf"], [whole])] == ["min-ean", "max-euf"]
    with pytest.raises(PruneError, match="min-ean is given twice"):
        rules_of(["ean", "min-ean"], [whole])
    with pytest.raises(PruneError, match="unknown criterion 'eon'"):
        rules_of(["eon"], [whole])


@given(st.permutations(list(range(9))), st.permutations(list(range(9))))
def test_rank_correlation_is_spearmans(one: list[int], other: list[int]) -> None:
    places = [[order.index(expert) for expert in range(9)] for order in (one, other)]
    assert rank_correlation(one, other) == pytest.approx(spearmanr(*places).statistic)
    assert rank_correlation(one, one) == pytest.approx(1)
    assert rank_correlation(one, one[::-1]) == pytest.approx(-1)


def test_a_single_survivor_has_no_order() -> None:
    assert rank_correlation([3], [3]) is None


def test_jaccard_of_nothing_is_one() -> None:
    assert (jaccard([], []), jaccard([1], []), jaccard([1, 2, 3], [2, 3, 4])) == (1, 0, 0.5)


def test_only_some_experts_as_if_there_were_no_others() -> None:
    part = only(FOUND[1], (5, 2))
    whole = FOUND[1]
    assert part.seen.counts.tolist() == whole.seen.counts[[5, 2]].tolist()
    assert part.seen.pairs[0, 1] == whole.seen.pairs[5, 2]
    assert part.seen.logit_gram.shape == part.weights.similarity.shape == (2, 2)
    assert part.seen.mean.tolist() == whole.seen.mean[[5, 2]].tolist()
    assert part.seen.vocabulary.shape == (2, 40)
    assert (part.seen.tokens, part.layer, part.top_k) == (200, 1, 2)
    assert part.weights.norm.tolist() == whole.weights.norm[[5, 2]].tolist()


def test_no_change_where_survivors_are_seen_as_before() -> None:
    survivors = {0: (1, 3, 4, 5), 1: (0, 1, 2), 4: (2, 3)}
    same = {layer: only(FOUND[layer], ids) for layer, ids in survivors.items()}
    found = changes(rules("min-euf", "max-rwn", "ean"), FOUND, same, survivors)
    for change in found:
        assert change.rank_correlation == pytest.approx(1)
        assert change.next_overlap == 1
    assert [layer.layer for layer in found[0].layers] == [0, 1, 4]


def test_the_order_turns_where_use_turns() -> None:
    """What was used least is used most after pruning: the order is reversed."""
    ids = (0, 2, 3, 5)
    before = np.array([10.0, 50, 20, 30, 60, 40])
    base = dataclasses.replace(FOUND[0], seen=dataclasses.replace(FOUND[0].seen, counts=before))
    after = only(base, ids)
    turned = dataclasses.replace(after.seen, counts=np.array([40.0, 30, 20, 10]))
    after = dataclasses.replace(after, seen=turned)
    (found,) = changes(rules("min-euf"), {0: base}, {0: after}, {0: ids})
    assert found.rank_correlation == pytest.approx(-1)
    assert found.next_overlap == 0


def test_pruned_tokens_change_the_order_of_the_survivors() -> None:
    part = routed(10, tokens=400)
    seen = masked(part, (0, 1, 2, 3)).statistics()
    after = dataclasses.replace(FOUND[0], seen=seen)
    base = dataclasses.replace(FOUND[0], seen=part.statistics())
    ids = (0, 1, 2, 3)
    (found,) = changes(rules("min-euf"), {0: base}, {0: only(after, ids)}, {0: ids})
    before = sorted(ids, key=lambda e: (len(part.tokens_of(e)), -e))
    then = sorted(ids, key=lambda e: (seen.counts[e], -e))
    assert before != then
    assert found.rank_correlation == pytest.approx(rank_correlation(before, then))
