"""The engine on vLLM against the one on transformers: the same answers under any routing map."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from offline.engines.base import TaskResult
from offline.engines.transformers import TransformersEngine
from offline.engines.vllm import VllmEngine
from offline.tasks.catalog import Task, get_task
from tests.maps import mixed_map, uniform_map
from tests.tiny import make_tiny_mixtral, random_map
from vllm_moe_prune.errors import PruneError
from vllm_moe_prune.layer_map import LayerMap, Selection
from vllm_moe_prune.routing_map import RoutingMap

pytestmark = pytest.mark.vllm

FLOAT32_LIMIT = 2e-3
_PLACES = ("here", "old sea", "small hill", "good house by the road and the green water")
_NOUNS = ("cat", "dog", "bird", "fish", "tree")
# The whole question is longer than a block of the prefix cache.
_PROMPT = "the king and the queen of the old house by the sea and the child of the road ask : "

CHOICE = """\
task: colours
dataset_path: json
dataset_kwargs: {{data_files: {{test: {folder}/data.jsonl}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{prompt}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: "{{{{right}}}}"
"""
WRITTEN = """\
task: written
dataset_path: json
dataset_kwargs: {{data_files: {{test: {folder}/data.jsonl}}}}
test_split: test
output_type: generate_until
doc_to_text: "{{{{prompt}}}}"
doc_to_target: answer
generation_kwargs: {{until: ["sun", "."], max_gen_toks: 12}}
metric_list: [{{metric: exact_match}}]
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Tasks of 20 items; a choice may begin like another one or be a single token."""
    folder = tmp_path_factory.mktemp("tasks")
    docs = [
        {
            "prompt": f"{_PROMPT} which {noun} is {place} ? the",
            "choices": ["red", "blue", f"blue {noun} sleeps", f"blue {noun} runs to the sun"],
            "right": number % 4,
            "answer": "red",
        }
        for place in _PLACES
        for number, noun in enumerate(_NOUNS)
    ]
    (folder / "data.jsonl").write_text("".join(json.dumps(doc) + "\n" for doc in docs))
    (folder / "colours.yaml").write_text(CHOICE.format(folder=folder))
    (folder / "written.yaml").write_text(WRITTEN.format(folder=folder))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VMPRUNE_CACHE", str(folder / "cache"))
        yield folder


@pytest.fixture(scope="module")
def choice(folder: Path) -> Task:
    return get_task(str(folder / "colours.yaml"))


@pytest.fixture(scope="module")
def written(folder: Path) -> Task:
    return get_task(str(folder / "written.yaml"))


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_mixtral(tmp_path_factory.mktemp("base"), layers=4)


@pytest.fixture(scope="module")
def live(base: Path) -> Iterator[VllmEngine]:
    with VllmEngine(base, dtype="float32") as engine:
        yield engine


@pytest.fixture(scope="module")
def reference(base: Path) -> TransformersEngine:
    return TransformersEngine(base, dtype="float32")


Engines = tuple[VllmEngine, TransformersEngine]


@pytest.fixture
def engines(live: VllmEngine, reference: TransformersEngine) -> Iterator[Engines]:
    yield live, reference
    live.apply(None)
    reference.apply(None)


def the_map(kind: str, base: Path) -> RoutingMap | None:
    rng = np.random.default_rng(5)
    if kind == "base":
        return None
    if kind == "uniform":
        return uniform_map(base, [(0, 2, 5, 7), (1, 2, 3, 4), (7, 0, 6, 1), (2, 4, 5, 6)])
    if kind == "top-1":
        return uniform_map(base, [range(8)] * 4, top_k=1)
    if kind == "mixed":
        return mixed_map(base)
    return random_map(base, rng, kinds=(kind,))  # type: ignore[no-any-return]


KINDS = ("base", "uniform", "top-1", "mixed", "sliced", "mapped", "w_rm", "w_em")


def assert_same(found: TaskResult, expected: TaskResult) -> None:
    """Predictions are equal, margins within float32's noise."""
    assert [i.item for i in found.items] == [i.item for i in expected.items]
    assert [i.prediction for i in found.items] == [i.prediction for i in expected.items]
    assert [i.correct for i in found.items] == [i.correct for i in expected.items]
    margins = [[i.margin or 0.0 for i in result.items] for result in (found, expected)]
    np.testing.assert_allclose(*margins, atol=FLOAT32_LIMIT)


def log_likelihoods(engine: Any, task: Task) -> list[tuple[float, bool]]:
    from offline.tasks.harness import local_task

    lm = engine._lm if isinstance(engine, VllmEngine) else engine._scorer
    requests = local_task(task, "test", None)
    requests.build_all_requests()
    return lm.loglikelihood(requests._instances)  # type: ignore[no-any-return]


def assert_same_likelihoods(
    found: Sequence[tuple[float, bool]], expected: Sequence[tuple[float, bool]]
) -> None:
    np.testing.assert_allclose(
        [value for value, _ in found], [value for value, _ in expected], atol=FLOAT32_LIMIT
    )
    assert [greedy for _, greedy in found] == [greedy for _, greedy in expected]


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
    assert len(seen) == len(KINDS)


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


def test_map_for_other_expert_counts_is_refused(live: VllmEngine, tmp_path: Path) -> None:
    other = make_tiny_mixtral(tmp_path / "m", layers=4, experts=4)
    with pytest.raises(PruneError, match="4 experts in layer 0, the model has 8"):
        live.apply(random_map(other, np.random.default_rng(0)))


def test_engine_that_does_not_start_says_why_in_one_line(base: Path) -> None:
    with pytest.raises(PruneError, match="vLLM cannot start on") as caught:
        VllmEngine(base, dtype="float32", max_model_len=10_000_000)
    assert "\n" not in str(caught.value)
    assert "max" in str(caught.value)


def test_one_top_k_for_more_than_the_base_has(live: VllmEngine, base: Path, choice: Task) -> None:
    """Not recorded, so a map may have more columns than the base."""
    more = [
        LayerMap(layer=n, num_experts=8, num_kept=8, top_k=3, experts=Selection(kept=(*range(8),)))
        for n in range(4)
    ]
    from tests.maps import map_of

    live.apply(map_of(base, more))
    use = live.usage(choice, "test", 2)
    assert use[0].tokens.sum() == pytest.approx(3 * use[0].scores.sum(), rel=1e-4)
    live.apply(None)


@pytest.mark.slow
def test_recorded_model_takes_maps_too(
    base: Path, reference: TransformersEngine, choice: Task, written: Task
) -> None:
    """torch.compile keeps what it saw: only the content of tensors may change with the map."""
    with VllmEngine(base, dtype="float32", enforce_eager=False) as recorded:
        for kind in ("base", "mixed", "top-1", "w_em"):
            routing_map = the_map(kind, base)
            if routing_map is not None and routing_map.max_top_k > recorded.top_k:
                with pytest.raises(PruneError, match="more than the base's 2"):
                    recorded.apply(routing_map)
                continue
            recorded.apply(routing_map)
            reference.apply(routing_map)
            assert_same(recorded.evaluate(choice, "test"), reference.evaluate(choice, "test"))
            assert_same(recorded.evaluate(written, "test"), reference.evaluate(written, "test"))
        with pytest.raises(PruneError, match="cannot be watched"):
            recorded.usage(choice, "test")
    reference.apply(None)


@pytest.mark.slow
def test_tensor_parallel_2(
    base: Path, reference: TransformersEngine, choice: Task, written: Task
) -> None:
    with VllmEngine(base, dtype="float32", tensor_parallel_size=2) as parallel:
        weights = parallel._lm.ask("moe_fingerprint")
        for kind in ("mixed", "w_em"):
            parallel.apply(the_map(kind, base))
            reference.apply(the_map(kind, base))
            assert_same(parallel.evaluate(choice, "test"), reference.evaluate(choice, "test"))
            assert_same(parallel.evaluate(written, "test"), reference.evaluate(written, "test"))
            found, expected = (e.agreement(choice, "test", 4) for e in (parallel, reference))
            assert found.accuracy == pytest.approx(expected.accuracy, abs=1e-3)
        parallel.apply(None)
        assert parallel._lm.ask("moe_fingerprint") == weights
    reference.apply(None)
