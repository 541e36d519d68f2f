"""The engine on vLLM against the one on transformers: the same answers under any routing map."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from offline.cli.progress import Silence
from offline.engines.live.engine import VllmEngine
from offline.engines.local.scoring import PackedLM
from offline.engines.local.transformers import TransformersEngine
from offline.engines.opened import Where
from offline.engines.reading import divergence
from offline.fitness.documents import TextAsked, parse_texts
from offline.plan.recipe import PlanRecipe
from offline.plan.sensitivity import SensitivityAsked, measure
from offline.tasks.catalog import Task
from tests.criteria.scores import scores_of
from tests.engines.live.comparing import (
    FLOAT32_LIMIT,
    KINDS,
    assert_same,
    assert_same_likelihoods,
    log_likelihoods,
    the_map,
)
from tests.engines.served import requests
from tests.sample_files import write_modules, write_task, write_text
from tests.sample_maps import map_of
from tests.sweep.samples import NAMES, swept_in
from tests.tiny import make_tiny_mixtral, random_map
from vllm_moe_prune.checkpoint import Checkpoint
from vllm_moe_prune.errors import PruneError
from vllm_moe_prune.layer_map import LayerMap, Selection
from vllm_moe_prune.provenance import DataIdentity

pytestmark = pytest.mark.vllm


@pytest.fixture(scope="module")
def live(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[VllmEngine]:
    """An engine started where a user has modules that are called like ours and vLLM's.

    And where another model runner is asked for, which could not be watched.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VLLM_USE_V2_MODEL_RUNNER", "1")
        patch.chdir(write_modules(tmp_path_factory.mktemp("user")))
        patch.setenv("PYTHONPATH", str(Path(__file__).parents[3]))
        with VllmEngine(base, dtype="float32") as engine:
            yield engine


Engines = tuple[VllmEngine, TransformersEngine]


@pytest.fixture
def engines(live: VllmEngine, reference: TransformersEngine) -> Iterator[Engines]:
    yield live, reference
    live.apply(None)
    reference.apply(None)


@pytest.mark.parametrize("kind", KINDS)
def test_choices_and_texts_are_those_of_transformers(
    kind: str, base: Path, engines: Engines, choice: Task, written: Task
) -> None:
    routing_map = the_map(kind, base)
    for engine in engines:
        engine.apply(routing_map)
    live, reference = engines
    assert_same(live.evaluate(choice, "test"), reference.evaluate(choice, "test"))
    assert_same_likelihoods(log_likelihoods(live, choice), log_likelihoods(reference, choice))
    assert_same(live.evaluate(written, "test"), reference.evaluate(written, "test"))


def test_maps_differ(base: Path, engines: Engines, choice: Task) -> None:
    """Or the tests above would compare the base with itself."""
    seen = set()
    for kind in KINDS:
        engines[0].apply(the_map(kind, base))
        seen.add(round(engines[0].evaluate(choice, "test").margin, 4))
    assert len(seen) == len(KINDS) - 1  # a one-hot map does the same, sliced or mapped


@pytest.mark.parametrize("kind", ["base", "sliced", "mixed", "w_em"])
def test_agreement_is_that_of_transformers(
    kind: str, base: Path, engines: Engines, choice: Task
) -> None:
    routing_map = the_map(kind, base)
    for engine in engines:
        engine.apply(routing_map)
    found, expected = (engine.agreement(choice, "test", 8, 3) for engine in engines)
    assert [i.item for i in found.items] == [i.item for i in expected.items]
    np.testing.assert_allclose(
        [i.correct for i in found.items], [i.correct for i in expected.items], atol=1e-3
    )
    assert (found.accuracy < 0.999) == (kind != "base")


@pytest.mark.parametrize("kind", ["base", "top-1", "mixed", "w_em"])
def test_usage_is_that_of_transformers(
    kind: str, base: Path, engines: Engines, choice: Task, written: Task
) -> None:
    routing_map = the_map(kind, base)
    for engine in engines:
        engine.apply(routing_map)
    for task in (choice, written):
        found, expected = (engine.usage(task, "test") for engine in engines)
        assert found.keys() == expected.keys()
        for layer, use in expected.items():
            np.testing.assert_array_equal(found[layer].tokens, use.tokens)
            np.testing.assert_allclose(found[layer].scores, use.scores, rtol=1e-4, atol=1e-3)


def test_base_comes_back_bit_by_bit(live: VllmEngine, base: Path, choice: Task) -> None:
    live.apply(None)
    weights, likelihoods = live._lm.ask("moe_fingerprint"), log_likelihoods(live, choice)
    rng = np.random.default_rng(7)
    for _ in range(3):  # merged layers of different sizes, one over the other
        live.apply(random_map(base, rng, kinds=("w_em",), keep=2))
        assert live._lm.ask("moe_fingerprint") != weights
    assert live.pristine_bytes > 0
    live.apply(random_map(base, rng, kinds=("sliced",)))
    assert live._lm.ask("moe_fingerprint") == weights
    live.apply(None)
    assert log_likelihoods(live, choice) == likelihoods


def test_what_was_cached_under_one_map_is_not_read_under_another(
    live: VllmEngine, base: Path, written: Task, choice: Task
) -> None:
    """Generation reads the prefix cache that scoring and generation before it have filled."""
    first, second = the_map("uniform", base), the_map("w_em", base)
    live.apply(second)
    alone = live.evaluate(written, "test"), live.evaluate(choice, "test")
    live.apply(first)
    live.evaluate(choice, "test")
    assert live.evaluate(written, "test").items != alone[0].items
    live.apply(second)
    assert live.evaluate(written, "test").items == alone[0].items
    assert live.evaluate(choice, "test").items == alone[1].items


def test_sharing_contexts_changes_no_answer_and_computes_less(
    live: VllmEngine, choice: Task
) -> None:
    shared, tokens = log_likelihoods(live, choice), live.evaluate(choice, "test").tokens
    live._lm.share_contexts = False
    live._lm._plans.clear()
    try:
        assert_same_likelihoods(log_likelihoods(live, choice), shared)
        assert tokens < 0.7 * live.evaluate(choice, "test").tokens
    finally:
        live._lm.share_contexts = True
        live._lm._plans.clear()


def test_later_items_find_what_the_first_ones_have_in_common_with_them(
    live: VllmEngine, base: Path, choice: Task, written: Task
) -> None:
    live.apply(the_map("uniform", base))
    for task in (choice, written):
        whole = live.evaluate(task, "test", 20)
        live._lm.forget_prefixes()
        alone = live.evaluate(task, "test", 20, 8)
        parts = [live.evaluate(task, "test", limit, first) for limit, first in ((8, 0), (20, 8))]
        found = [item.prediction for part in parts for item in part.items]
        assert found == [item.prediction for item in whole.items]
        assert parts[1].tokens < alone.tokens
        live.apply(None)  # nothing of the map is left for the next one
        live.apply(the_map("uniform", base))


def test_map_for_other_expert_counts_is_refused(live: VllmEngine, tmp_path: Path) -> None:
    other = make_tiny_mixtral(tmp_path / "m", layers=4, experts=4)
    with pytest.raises(PruneError, match="4 experts in layer 0, the model has 8"):
        live.apply(random_map(other, np.random.default_rng(0)))


def test_more_active_experts_than_the_base_has(live: VllmEngine, base: Path, choice: Task) -> None:
    """Not recorded, so a map may have more columns than the base."""
    more = [
        LayerMap(layer=n, num_experts=8, num_kept=8, top_k=3, experts=Selection(kept=(*range(8),)))
        for n in range(4)
    ]
    live.apply(map_of(base, more))
    use = live.usage(choice, "test", 2)
    assert use[0].tokens.sum() == pytest.approx(3 * use[0].scores.sum(), rel=1e-4)
    live.apply(None)


def test_whole_texts_have_the_likelihoods_of_transformers(engines: Engines) -> None:
    live, reference = engines
    lm = PackedLM(
        reference.model,
        reference.tokenizer,
        tokens_per_batch=600,
        max_length=live._lm.max_length,
    )
    words = ["the", "king", "and", "the", "queen", "of", "the", "old", "house"]
    texts = requests(*((" ".join(words * count),) for count in (1, 20, 70, 130)), ("",))
    expected = lm.loglikelihood_rolling(texts)
    assert live._lm.loglikelihood_rolling(texts) == pytest.approx(expected, abs=2e-2)
    assert expected[-1] == 0 > expected[0] > expected[3]


@pytest.mark.parametrize("kind", ["base", "sliced", "w_em"])
def test_readings_are_those_of_transformers(kind: str, base: Path, engines: Engines) -> None:
    """Also of texts that share their beginning, and of one longer than a step's chunk."""
    rng = np.random.default_rng(2)
    long = rng.integers(5, 120, 300).tolist()
    texts = [long, long[:40], [*long[:36], 7, 9], long[:2]]
    before = [engine.reader.readings(texts, count=6) for engine in engines]
    for engine in engines:
        engine.apply(the_map(kind, base))
    wanted = [one.tokens for one in before[0]]
    after = [engine.reader.readings(texts, wanted=wanted) for engine in engines]
    for live, reference in (before, after):
        for found, expected in zip(live, reference, strict=True):
            np.testing.assert_allclose(found.log_probs, expected.log_probs, atol=FLOAT32_LIMIT)
            np.testing.assert_allclose(found.greatest, expected.greatest, atol=FLOAT32_LIMIT)
            np.testing.assert_allclose(found.listed, expected.listed, atol=FLOAT32_LIMIT)
    away = [abs(one.log_probs - two.log_probs).max() for one, two in zip(*before, strict=True)]
    assert max(away) < FLOAT32_LIMIT
    moved = [divergence(*pair).max() for pair in zip(before[0], after[0], strict=True)]
    assert bool(max(moved) == 0) is (kind == "base")


def test_thinking_is_left_out_as_in_transformers(engines: Engines) -> None:
    live, reference = (engine for engine in engines)
    prompt = "the king and the queen of the old house"
    (free,) = live._lm.generate_until(requests((prompt, {"max_gen_toks": 12})))
    words = free.split()
    end = next(word for place, word in enumerate(words) if place > 2 and words.count(word) == 1)
    after = words[words.index(end) + 1 :]
    options = {"max_gen_toks": 12, "think_end": end}
    asked = requests(
        (prompt, options),
        (prompt, {**options, "until": [words[0], after[-1]]}),  # one of them while it thinks
        (prompt, {**options, "think_end": "zzz"}),
    )
    before = live._lm.unfinished
    found = live._lm.generate_until(asked)
    assert [text.split() for text in found] == [after, after[: after.index(after[-1])], []]
    assert live._lm.unfinished == before + 1
    assert found == reference._scorer.generate_until(asked)


def test_samples_are_drawn_by_the_seed(engines: Engines) -> None:
    lm = engines[0]._lm
    options = {"max_gen_toks": 8, "temperature": 1.5, "top_k": 50, "top_p": 0.95, "min_p": 0.01}
    asked = requests(("the king", {**options, "seed": 3})) * 4
    found = lm.generate_until(asked)
    assert len(set(found)) > 1
    assert lm.generate_until(asked) == found
    assert lm.generate_until(requests(("the king", {**options, "seed": 4})) * 4) != found
    one = {**options, "top_k": 1}
    greedy = lm.generate_until(requests(("the king", {"max_gen_toks": 8})))
    assert lm.generate_until(requests(("the king", one))) == greedy


def test_a_sweep_finds_what_it_finds_with_transformers(
    engines: Engines, base: Path, tmp_path: Path
) -> None:
    """Dropped, merged and substituted, with fewer active experts; and how fast the front is."""
    task = write_task(tmp_path)
    live = swept_in(engines[0], "vllm", base, task, tmp_path / "live")
    local = swept_in(engines[1], "transformers", base, task, tmp_path / "local")
    assert {point.name for point in live.points} == NAMES
    for found, expected in zip(live.points, local.points, strict=True):
        own = {"speed", "seconds"}
        same = expected.model_dump(exclude={*own, "command"})
        assert found.model_dump(exclude={*own, "command"}) == same
        assert (found.speed is None) is (expected.speed is None) is not found.on_front
    assert len({point.search for point in live.points}) > 2
    assert all(point.held_out is not None for point in live.points)
    fast = [point.speed for point in live.front if point.speed is not None]
    assert fast and all(one.engine == "vllm" and one.tokens_per_second > 0 for one in fast)


def test_what_each_layer_loses_is_the_same(base: Path, engines: Engines, tmp_path: Path) -> None:
    opened = Checkpoint.open(base)
    layers = tuple(opened.expert_counts())
    scores = scores_of(layers, base=opened.fingerprint(), gradients=False, experts=8)
    text = TextAsked(parse_texts("--text", f"{write_text(tmp_path / 'prose.txt')}:4"), length=16)
    source = DataIdentity(name="scores", count=1, sha256="sha256:0")
    asked = SensitivityAsked(opened, scores, source, PlanRecipe(ratio=0.0), text, 1, Where())
    live, reference = (measure(engine, asked, Silence()) for engine in engines)
    assert live.loss == pytest.approx(reference.loss, abs=FLOAT32_LIMIT)
    assert [one.layer for one in live.layers] == list(layers)
    for mine, other in zip(live.layers, reference.layers, strict=True):
        assert mine.losses[2] == pytest.approx(other.losses[2], abs=FLOAT32_LIMIT)
    assert max(abs(one.losses[2]) for one in live.layers) > 10 * FLOAT32_LIMIT
