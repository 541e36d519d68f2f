"""The key test: what vLLM serves equals the original with the dropped experts' scores removed.

Each case starts a vLLM engine in a process of its own; one engine answers all prompts of a case.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

from offline.build.build import build
from tests.hub.server import Hub
from tests.reference import greedy, reference_model
from tests.sample_maps import mixed_map, uniform_map
from tests.tiny import make_tiny_mixtral
from tests.vllm_probe import hub_probe, probe
from vllm_moe_prune.checkpoint import Checkpoint
from vllm_moe_prune.routing_map import RoutingMap

pytestmark = pytest.mark.vllm

PROMPTS = [[1, 5, 9, 20, 33, 7], [1, 40, 41, 42, 60, 61, 62, 63, 64], [1, 100, 3, 77]]
EVEN = [(0, 2, 5, 7), (1, 2, 3, 4), (0, 1, 6, 7), (2, 4, 5, 6)]
STEPS = 16
FLOAT32_LIMIT = 2e-3


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_mixtral(tmp_path_factory.mktemp("base"), layers=4, shards=3)


@pytest.fixture(scope="module")
def mixed(base: Path) -> RoutingMap:
    return mixed_map(base)


@pytest.fixture(scope="module")
def compact(base: Path, mixed: RoutingMap, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("compact") / "out"
    assert build(Checkpoint.open(base), mixed, out).form == "compact"
    return out


@pytest.fixture(scope="module")
def expected(base: Path, mixed: RoutingMap) -> list[Any]:
    model = reference_model(base, mixed, torch.float32)
    return [greedy(model, prompt, STEPS) for prompt in PROMPTS]


def assert_equal(answers: list[Any], expected: list[Any], limit: float = FLOAT32_LIMIT) -> float:
    """Compare greedy tokens exactly and log-probabilities of the whole vocabulary within limit."""
    worst = 0.0
    for (tokens, logprobs), (want_tokens, want_logprobs) in zip(answers, expected, strict=True):
        assert tokens == want_tokens
        difference = torch.tensor(logprobs) - torch.tensor(want_logprobs)
        worst = max(worst, float(difference.abs().max()))
    assert worst <= limit
    return worst


def test_plain_in_stock_vllm_equals_masked_base(base: Path, tmp_path: Path) -> None:
    routing_map = uniform_map(base, EVEN)
    assert build(Checkpoint.open(base), routing_map, tmp_path / "out").form == "plain"
    model = reference_model(base, routing_map, torch.float32)
    expected = [greedy(model, prompt, STEPS) for prompt in PROMPTS]
    assert_equal(probe(tmp_path / "out", PROMPTS, steps=STEPS, dtype="float32"), expected)


def test_the_reference_tells_a_wrong_map_from_the_right_one(
    base: Path, expected: list[Any]
) -> None:
    """The oracle must be able to fail: another map gives another answer."""
    other = mixed_map(base, seed=1)
    model = reference_model(base, other, torch.float32)
    with pytest.raises(AssertionError):
        assert_equal([greedy(model, prompt, STEPS) for prompt in PROMPTS], expected)


def test_compact_with_everything_mixed(compact: Path, expected: list[Any]) -> None:
    """Per-layer E' and top-k, sliced and mapped routers, continuous W_RM and W_EM."""
    answers = probe(compact, PROMPTS, steps=STEPS, load_format="pruned_moe", dtype="float32")
    assert_equal(answers, expected)


def test_map_only_applies_the_map_while_loading_the_base(
    base: Path, mixed: RoutingMap, expected: list[Any], tmp_path: Path
) -> None:
    mixed.save(tmp_path)
    answers = probe(
        base,
        PROMPTS,
        steps=STEPS,
        load_format="pruned_moe",
        dtype="float32",
        model_loader_extra_config={"routing_map": str(tmp_path)},
    )
    assert_equal(answers, expected)


def test_compact_and_map_by_their_names_on_the_hub(
    hub: Hub, base: Path, compact: Path, mixed: RoutingMap, expected: list[Any], tmp_path: Path
) -> None:
    mixed.save(tmp_path / "map")
    hub.publish("me/base", base)
    hub.publish("me/out", compact, tag="v1")
    hub.publish("me/out", base)  # what main is now would be refused
    hub.publish("me/map", tmp_path / "map", tag="v1")
    by_name = {"load_format": "pruned_moe", "dtype": "float32", "steps": STEPS}
    of_map = {"routing_map": "me/map@v1"}
    with hub_probe() as ask:
        assert_equal(ask("me/out", PROMPTS, revision="v1", **by_name), expected)
        assert_equal(ask("me/base", PROMPTS, model_loader_extra_config=of_map, **by_name), expected)
    assert Counter(fetched(hub, "me/out") + fetched(hub, "me/base")).most_common(1)[0][1] == 1


def fetched(hub: Hub, repository: str) -> list[str]:
    """Return the weights of a repository that were sent, once for each time."""
    weights = r"/cdn/.*\.safetensors"
    sent = [r for r in hub.asked(weights) if r.method == "GET" and not r.range]
    assert any(repository in request.path for request in sent)
    return [request.path for request in sent if repository in request.path]


@pytest.mark.slow
def test_ranks_download_once(hub: Hub, compact: Path, expected: list[Any]) -> None:
    hub.publish("me/out", compact)
    answers = probe(
        "me/out",
        PROMPTS,
        steps=STEPS,
        env={"VLLM_CPU_OMP_THREADS_BIND": "0|1", "HF_HUB_OFFLINE": "0"},
        load_format="pruned_moe",
        dtype="float32",
        tensor_parallel_size=2,
    )
    assert_equal(answers, expected)
    assert Counter(fetched(hub, "me/out")).most_common(1)[0][1] == 1


@pytest.mark.slow
def test_tensor_parallel_2(compact: Path, expected: list[Any]) -> None:
    answers = probe(
        compact,
        PROMPTS,
        steps=STEPS,
        env={"VLLM_CPU_OMP_THREADS_BIND": "0|1"},
        load_format="pruned_moe",
        dtype="float32",
        tensor_parallel_size=2,
    )
    assert_equal(answers, expected)


@pytest.mark.slow
@pytest.mark.parametrize("form", ["plain", "compact"])
def test_pipeline_parallel_2(
    base: Path, compact: Path, expected: list[Any], tmp_path: Path, form: str
) -> None:
    folder, load_format = compact, "pruned_moe"
    if form == "plain":
        folder, load_format = tmp_path / "out", "auto"
        routing_map = uniform_map(base, EVEN)
        build(Checkpoint.open(base), routing_map, folder)
        model = reference_model(base, routing_map, torch.float32)
        expected = [greedy(model, prompt, STEPS) for prompt in PROMPTS]
    answers = probe(
        folder,
        PROMPTS,
        steps=STEPS,
        env={"VLLM_CPU_OMP_THREADS_BIND": "0|1"},
        load_format=load_format,
        dtype="float32",
        pipeline_parallel_size=2,
        enforce_eager=False,  # eager, vLLM's CPU build fails with two stages, of any model
    )
    assert_equal(answers, expected)


@pytest.mark.slow
def test_compiled(compact: Path, expected: list[Any]) -> None:
    answers = probe(
        compact,
        PROMPTS,
        steps=STEPS,
        load_format="pruned_moe",
        dtype="float32",
        enforce_eager=False,
    )
    assert_equal(answers, expected)


@pytest.mark.slow
def test_bfloat16_differs_no_more_than_the_base_does(
    base: Path, compact: Path, mixed: RoutingMap
) -> None:
    """In bf16 the yardstick is vLLM against transformers on the unpruned base, measured here."""
    noise = _bfloat16_difference(base, None, probe(base, PROMPTS, steps=STEPS, dtype="bfloat16"))
    answers = probe(compact, PROMPTS, steps=STEPS, load_format="pruned_moe", dtype="bfloat16")
    pruned = _bfloat16_difference(base, mixed, answers)
    print(f"bf16 mean |log-probability difference|: base {noise:.2e}, pruned {pruned:.2e}")
    assert pruned <= max(3 * noise, 1e-2)


def _bfloat16_difference(base: Path, routing_map: RoutingMap | None, answers: list[Any]) -> float:
    """Mean difference of the log-probabilities over the vocabulary, along vLLM's own tokens."""
    model = reference_model(base, routing_map, torch.bfloat16)
    differences = []
    for prompt, (tokens, logprobs) in zip(PROMPTS, answers, strict=True):
        with torch.no_grad():
            logits = model(torch.tensor([prompt + tokens])).logits[0, len(prompt) - 1 : -1]
        reference = torch.log_softmax(logits.float(), dim=-1)
        differences.append((reference - torch.tensor(logprobs)).abs().mean())
    return float(torch.stack(differences).mean())
