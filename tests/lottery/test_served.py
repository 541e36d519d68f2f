"""A tuned checkpoint is served by stock vLLM and by the plugin as transformers computes it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from offline.build.build import build
from tests.reference import greedy
from tests.sample_maps import uniform_map
from tests.tiny import make_tiny_mixtral
from tests.vllm_probe import probe
from vllm_moe_prune.checkpoint import Checkpoint
from vllm_moe_prune.routing_map import RoutingMap
from vllm_moe_prune.tuning import Tuning

pytestmark = pytest.mark.vllm

PROMPTS = [[1, 5, 9, 20, 33, 7], [1, 40, 41, 42, 60, 61, 62, 63, 64], [1, 100, 3, 77]]
STEPS = 12
LIMIT = 2e-3


@pytest.fixture(scope="module")
def tuned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A plain checkpoint, pruned and then trained, with a map that says so: a lottery's outcome.

    Heads are of the size that vLLM attends with, unlike those of the other tests here.
    """
    from offline.build.trained import finish
    from offline.finetune.examples import Examples
    from offline.finetune.finetune import finetune
    from offline.finetune.settings import FinetuneSettings
    from offline.finetune.where import Where

    folder = tmp_path_factory.mktemp("served")
    base = make_tiny_mixtral(folder / "base")
    dropping = uniform_map(base, [[0, 2, 3, 5, 7], [1, 2, 4, 6, 7]])
    build(Checkpoint.open(base), dropping, folder / "pruned")
    ids = torch.randint(3, 128, (16, 24), generator=torch.Generator().manual_seed(0)).int().numpy()
    settings = FinetuneSettings(learning_rate=3e-3, batch=4)
    examples = Examples(ids, ids.copy(), ())
    done = finetune(folder / "pruned", examples, settings, folder / "tuned", seed=0, where=Where())
    made = dropping.model_copy(update={"tuned": (done.tuning,)})
    finish(Checkpoint.open(folder / "tuned"), Checkpoint.open(base), made, folder / "out")
    return folder / "out"


@pytest.mark.parametrize(
    "load_format", ["auto", pytest.param("pruned_moe", marks=pytest.mark.slow)]
)
def test_vllm_serves_what_was_trained(tuned: Path, load_format: str) -> None:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(tuned, dtype=torch.float32).eval()
    expected = [greedy(model, prompt, STEPS) for prompt in PROMPTS]
    answers = probe(tuned, PROMPTS, steps=STEPS, load_format=load_format, dtype="float32")
    for (tokens, logprobs), (want_tokens, want_logprobs) in zip(answers, expected, strict=True):
        assert tokens == want_tokens
        difference = torch.tensor(logprobs) - torch.tensor(want_logprobs)
        assert float(difference.abs().max()) <= LIMIT


@pytest.mark.slow
def test_the_plugin_refuses_to_apply_a_tuned_map_to_its_base(tuned: Path) -> None:
    base = tuned.with_name("base")
    extra: dict[str, Any] = {"routing_map": str(tuned)}
    with pytest.raises(RuntimeError, match="were tuned for"):
        probe(
            base,
            PROMPTS[:1],
            steps=1,
            load_format="pruned_moe",
            dtype="float32",
            model_loader_extra_config=extra,
        )


def test_the_loader_itself_refuses_it(tuned: Path) -> None:
    from vllm_moe_prune.errors import PruneError
    from vllm_moe_prune.mapped_checkpoint import apply_map

    assert RoutingMap.load(tuned).tuned == (
        Tuning.model_validate(RoutingMap.load(tuned).tuned[0].model_dump()),
    )
    with pytest.raises(PruneError, match="were tuned for 4 steps"):
        apply_map(Checkpoint.open(tuned.with_name("base")), RoutingMap.load(tuned))
