"""Scores, those of the pruned model, and a map: what fits together and what comes of it."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from offline.analysis.analyse import THE_MAP, analyse
from offline.analysis.rankings import jaccard
from offline.analysis.subset import only
from offline.analysis.use import use_of
from offline.calibration.scores import Scores
from offline.criteria.registry import CRITERIA, Rule
from offline.maps.map_space import Space
from offline.methods.merging import merged_map
from offline.results.analysis import ANALYSIS_FILE, Analysis
from tests.analysis.samples import Routed, map_keeping, masked, scores_of, sliced, two_domains
from tests.sample_shapes import shape_of
from tests.vllm_moe_prune.bare import BASE
from vllm_moe_prune.errors import PruneError
from vllm_moe_prune.provenance import DataIdentity, Provenance
from vllm_moe_prune.routing_map import RoutingMap

TOKENS = two_domains()
SCORES = scores_of(TOKENS)
KEPT = {0: (0, 1, 4), 1: (1, 2, 3), 4: (0, 3, 5)}
MAP = map_keeping(KEPT)


def pruned(how: Any) -> Scores:
    domains: dict[str, dict[int, Routed]] = {
        name: {layer: how(part, KEPT[layer]) for layer, part in layers.items()}
        for name, layers in TOKENS.items()
    }
    return scores_of(domains)


MASKED, SLICED = pruned(masked), pruned(sliced)


def merging_map() -> RoutingMap:
    space = Space.of(shape_of(dict.fromkeys(KEPT, 6)))
    keep = dict.fromkeys(KEPT, 3)
    provenance = Provenance(method="merge")
    return merged_map(space, SCORES.evidence(), keep, "router-similarity", "sum", provenance)


def test_scores_alone() -> None:
    found = analyse(SCORES)
    assert [layer.layer for layer in found.layers] == [0, 1, 4]
    assert found.layers == tuple(use_of(shown) for shown in SCORES.evidence().values())
    assert (found.after, found.fates, found.changes, found.domains) == ((), (), (), None)
    assert [matrix.layer for matrix in found.co_activation] == [0, 1, 4]
    assert [set(domain.shares) for domain in found.by_domain] == [{"code", "prose"}] * 3
    assert found.overlap is not None
    assert found.overlap.keep == {0: 3, 1: 3, 4: 3}
    words = [Rule.parse(name).word for name, c in CRITERIA.items() if not c.needs_gradients]
    assert list(found.overlap.words) == words
    assert found.base == BASE
    assert found.provenance.data == SCORES.provenance.data


def test_a_blend_is_what_is_described() -> None:
    found = analyse(SCORES, domains={"code": 1.0}, criteria=["euf"], keep=2)
    expected = SCORES.evidence({"code": 1.0})
    assert found.layers == tuple(use_of(shown) for shown in expected.values())
    assert found.by_domain == ()  # one domain differs from none
    assert found.domains == {"code": 1.0}
    assert found.overlap is not None
    assert (found.overlap.words, found.overlap.keep[4]) == (("min-euf",), 2)
    both = analyse(SCORES, domains={"code": 1.0, "prose": 3.0}, criteria=["euf"])
    assert [set(domain.shares) for domain in both.by_domain] == [{"code", "prose"}] * 3


def test_chosen_layers_show_their_co_activation() -> None:
    found = analyse(SCORES, layers=[4, 1])
    assert [matrix.layer for matrix in found.co_activation] == [1, 4]
    with pytest.raises(PruneError, match="--layers 2: no such layer"):
        analyse(SCORES, layers=[2])


def test_a_map_says_what_is_left_of_the_base_s_use() -> None:
    found = analyse(SCORES, routing_map=MAP, criteria=["min-ean", "max-ean"])
    for fate in found.fates:
        assert fate.kept == KEPT[fate.layer]
        counts = SCORES.evidence()[fate.layer].seen.counts
        assert fate.kept_share == pytest.approx(
            sum(counts[e] for e in KEPT[fate.layer]) / counts.sum()
        )
    assert found.overlap is not None
    assert found.overlap.words == ("min-ean", "max-ean", THE_MAP)
    gone = [(layer, e) for layer, kept in KEPT.items() for e in range(6) if e not in kept]
    evidence = SCORES.evidence()
    least = [
        (layer, int(e))
        for layer, shown in evidence.items()
        for e in np.argsort(np.sqrt(shown.seen.squares).sum(axis=1))[:3]
    ]
    assert found.overlap.jaccard[0][2] == pytest.approx(jaccard(least, gone))


def test_scores_under_a_map_and_of_the_smaller_model_say_the_same() -> None:
    """The router of both renormalises, so the same tokens go to the same experts."""
    one = analyse(SCORES, after=MASKED, routing_map=MAP, criteria=["min-euf", "min-ean"])
    other = analyse(SCORES, after=SLICED, routing_map=MAP, criteria=["min-euf", "min-ean"])
    for a, b in zip(one.after, other.after, strict=True):
        assert a.experts == b.experts == KEPT[a.layer]
        assert a.share == pytest.approx(b.share)
        assert a.cv == pytest.approx(b.cv)
        assert a.strongest_pair is not None
        assert b.strongest_pair is not None
        assert a.strongest_pair.experts == b.strongest_pair.experts
    assert one.changes == other.changes
    assert {change.word for change in one.changes} == {"min-euf", "min-ean"}


def test_without_a_map_what_saw_no_token_counts_as_dropped() -> None:
    one = analyse(SCORES, after=MASKED, criteria=["min-euf"])
    other = analyse(SCORES, after=MASKED, routing_map=MAP, criteria=["min-euf"])
    assert one.after == other.after
    assert one.changes == other.changes
    assert one.after[0] == use_of(only(MASKED.evidence()[0], KEPT[0]), KEPT[0])


def test_merged_experts_have_a_use_but_no_order_of_before() -> None:
    found = analyse(SCORES, after=SLICED, routing_map=merging_map())
    assert found.after[1].experts == (0, 1, 2)
    assert found.changes == ()
    assert {(fate.kept, fate.num_kept, fate.kept_share) for fate in found.fates} == {
        (None, 3, None)
    }
    assert found.overlap is not None
    assert THE_MAP not in found.overlap.words


def test_a_map_that_keeps_all_leaves_nothing_to_compare() -> None:
    whole = map_keeping(dict.fromkeys(KEPT, range(6)))
    assert analyse(SCORES, routing_map=whole).overlap is None
    with pytest.raises(PruneError, match="all experts are kept"):
        analyse(SCORES, keep=6)


def foreign(scores: Scores) -> Scores:
    data = tuple(DataIdentity(name=d.name, count=1, sha256="other") for d in scores.provenance.data)
    return dataclasses.replace(scores, provenance=Provenance(method="score", data=data))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"after": SLICED}, "--after has 3 experts in layer 0, --scores has 6 (hint: add --map"),
        (
            {"after": SLICED, "routing_map": map_keeping(dict.fromkeys(KEPT, (0, 1)))},
            "--after has 3 experts in layer 0, the map keeps 2",
        ),
        ({"after": foreign(MASKED)}, "--scores and --after saw different text of code"),
        ({"after": scores_of(two_domains((0, 1)))}, "--after holds other layers than --scores"),
        ({"routing_map": map_keeping({0: (0, 1)})}, "the map and the scores have different layers"),
        (
            {"routing_map": map_keeping(KEPT, experts=7)},
            "layer 0: the map and the scores do not fit",
        ),
        ({"domains": {"law": 1.0}}, "no scores of domain 'law'"),
        ({"criteria": ["egn"]}, "egn needs gradients"),
    ],
)
def test_what_does_not_fit_is_named(options: dict[str, Any], said: str) -> None:
    with pytest.raises(PruneError, match=re.escape(said)):
        analyse(SCORES, **options)


def test_a_map_of_another_base_is_refused() -> None:
    other = scores_of(TOKENS, base=BASE.model_copy(update={"index": "sha256:other"}))
    with pytest.raises(PruneError, match="different base models"):
        analyse(other, routing_map=MAP)


def test_a_layer_that_saw_no_token_is_an_error() -> None:
    code = dict(SCORES.domains["code"])
    code[4] = dataclasses.replace(code[4], counts=np.zeros(6), tokens=0.0)
    silent = dataclasses.replace(SCORES, domains={"code": code})
    with pytest.raises(PruneError, match="--scores: layer 4 saw no token"):
        analyse(silent)


def test_the_file_is_read_back_as_it_was_and_nothing_else_is(tmp_path: Path) -> None:
    found = analyse(SCORES, after=MASKED, routing_map=MAP)
    found.save(tmp_path)
    assert Analysis.load(tmp_path) == found
    with pytest.raises(ValidationError, match="frozen"):
        found.layers[0].cv = 0.0  # type: ignore[misc]
    file = tmp_path / ANALYSIS_FILE
    file.write_text(file.read_text().replace('"cv"', '"vc"', 1))
    with pytest.raises(PruneError, match=r"analysis\.json"):
        Analysis.load(tmp_path)
    file.write_text("{")
    with pytest.raises(PruneError, match="is not JSON"):
        Analysis.load(tmp_path)
    file.unlink()
    with pytest.raises(PruneError, match="vmprune analyze"):
        Analysis.load(tmp_path)
