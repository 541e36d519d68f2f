"""Scores and answers do not depend on what shares a batch, however a family attends.

Windows and chunks are shorter here than the texts; Qwen3-Next has layers that carry a state.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from offline.engines.decoding import Decoding
from offline.engines.encoding import Prompt
from offline.engines.local.attention_reach import attention_reach
from offline.engines.local.generation import generate
from offline.engines.local.pretrained import from_pretrained
from offline.engines.local.scoring import PackedLM
from tests.families.models import FAMILIES, make_family

SHORT: dict[str, dict[str, Any]] = {
    "mixtral": {"sliding_window": 6},
    "phimoe": {"sliding_window": 6},
    "gpt_oss": {"sliding_window": 6},
    "qwen3_moe": {"use_sliding_window": True, "sliding_window": 6, "max_window_layers": 0},
    "llama4_text": {"attention_chunk_size": 8},
}
REACHES = {
    "mixtral": 6,
    "phimoe": 6,
    "qwen3_moe": 6,
    "gpt_oss": 0,
    # layers that carry a state along the row
    **dict.fromkeys(("qwen3_next", "qwen3_5_moe_text", "qwen4_exp_text"), 0),
    **dict.fromkeys(("granitemoehybrid", "lfm2_moe"), 0),
    # attention of a kind of its own
    **dict.fromkeys(("deepseek_v32", "glm_moe_dsa", "mimo_v2_flash"), 0),
    "llama4_text": 8,
}


class Numbers:
    """A tokenizer whose tokens are their numbers."""

    eos_token_id = 2

    def decode(self, ids: list[int], skip_special_tokens: bool) -> str:
        return " ".join(map(str, ids))


@pytest.fixture(scope="module", params=[one for one in FAMILIES if one.values != ("llama4",)])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    family = request.param
    folder = tmp_path_factory.mktemp(family) / "m"
    make_family(family, folder, **SHORT.get(family, {}))
    return from_pretrained(folder, "float32").eval()


def log_probs(model: Any, ids: list[int]) -> torch.Tensor:
    with torch.inference_mode():
        output = model(input_ids=torch.tensor([ids]), use_cache=False)
    return torch.log_softmax(output.logits[0].double(), dim=-1)


def test_log_likelihoods_are_those_of_the_texts_alone(model: Any) -> None:
    rng = np.random.default_rng(0)
    pairs = []
    for length in (1, 3, 7, 12, 30):
        context = rng.integers(3, 60, length).tolist()
        pairs += [(context, rng.integers(3, 60, size).tolist()) for size in (1, 2, 5, 20)]
    lm = PackedLM(model, Numbers(), tokens_per_batch=512, max_length=64)
    found = lm._loglikelihood_tokens([(("", ""), *pair) for pair in pairs])
    for (context, continuation), (score, greedy) in zip(pairs, found, strict=True):
        expected = log_probs(model, context + continuation)[len(context) - 1 : -1]
        each = expected[torch.arange(len(continuation)), torch.tensor(continuation)]
        assert score == pytest.approx(float(each.sum()), abs=2e-3)
        assert greedy == (expected.argmax(-1).tolist() == continuation)


def test_answers_are_those_of_the_prompts_alone(model: Any) -> None:
    prompts = [Prompt(tuple(range(5, 5 + n)), Decoding(), 9) for n in (1, 3, 9, 20, 40)]
    answers = generate(model, prompts, Numbers(), 4096, ())
    for prompt, answer in zip(prompts, answers, strict=True):
        ids = list(prompt.ids)
        for _ in range(9):
            ids.append(int(log_probs(model, ids)[-1].argmax()))
        assert answer.text == " ".join(map(str, ids[len(prompt.ids) :]))


def test_how_far_attention_reaches(model: Any) -> None:
    expected = REACHES.get(model.config.model_type)
    if expected is None:
        assert attention_reach(model.config) > 64
    else:
        assert attention_reach(model.config) == expected
